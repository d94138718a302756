"""The exact unroll against autograd through everything, and what the approximation leaves out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, Adam, InnerOptimizer, Momentum
from mim4dd_pl.engine.unroll import DetachedUnroll, ExactUnroll, FullGraphUnroll, InnerLoop, Minibatch, Unroll
from tests.conftest import randn

# A bias before an instance norm has no gradient but rounding errors, which Adam's usual eps of 1e-8 would magnify.
OPTIMIZERS = [SGD(), Momentum(0.9), Adam(eps=1e-3)]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = Callable[..., tuple[Tensor, ...]]


@pytest.fixture
def derivatives(network: FlatNetwork) -> Derivatives:
    return Derivatives(network)


@pytest.fixture
def minibatch(stream: Stream) -> Minibatch:
    """For two students four of six images each, another four and another augmentation at every step."""
    augment = DSA()

    def draw(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = [torch.randperm(6, generator=stream.at("order", k, step).generator())[:4] for k in range(2)]
        x = [augment(images[chosen[k]], stream.at("augment", k, step)) for k in range(2)]
        return torch.stack(x), labels[torch.stack(chosen)]

    return draw


@pytest.fixture
def inputs(network: FlatNetwork, stream: Stream) -> Inputs:
    """Images, soft labels, student learning rate and the start of two students in float64."""
    images, labels = randn(stream.at("images"), 6, 1, 4, 4), randn(stream.at("labels"), 6, 3).softmax(1)
    start = torch.stack([network.initial(stream.at("start", k)).double() for k in range(2)])
    student_lr = torch.tensor(0.3, dtype=torch.float64)
    return images.requires_grad_(), labels.requires_grad_(), student_lr.requires_grad_(), start.requires_grad_()


@pytest.fixture
def gradients(derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs, stream: Stream) -> Gradients:
    """Gradients of a random linear function of theta_N on images, labels, lr and start."""
    direction = randn(stream.at("direction"), *inputs[3].shape)

    def compute(
        unroll: Unroll, steps: int, optimizer: InnerOptimizer | None = None, window: range | None = None
    ) -> tuple[Tensor, ...]:
        theta = unroll(InnerLoop(derivatives, optimizer or SGD(), minibatch, steps, window), *inputs)
        return torch.autograd.grad((theta * direction).sum(), inputs, allow_unused=True, materialize_grads=True)

    return compute


def assert_equal(ours: tuple[Tensor, ...], oracle: tuple[Tensor, ...]) -> None:
    for part, expected in zip(ours, oracle, strict=True):
        assert (part - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_exact_unroll_equals_the_full_graph(gradients: Gradients, steps: int, optimizer: InnerOptimizer) -> None:
    assert_equal(gradients(ExactUnroll(), steps, optimizer), gradients(FullGraphUnroll(), steps, optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize("window", [range(0, 3), range(2, 6), range(4, 6), range(1, 2)], ids=str)
def test_a_truncated_unroll_equals_the_full_graph_truncated_alike(
    gradients: Gradients, window: range, optimizer: InnerOptimizer
) -> None:
    exact, full = (gradients(unroll, 6, optimizer, window) for unroll in (ExactUnroll(), FullGraphUnroll()))
    assert_equal(exact, full)
    assert not torch.allclose(exact[0], gradients(ExactUnroll(), 6, optimizer)[0])
    assert bool((exact[3] != 0).any()) == (window[0] == 0)


@pytest.mark.parametrize("window", [range(0), range(3, 7), range(-1, 2), range(0, 6, 2)], ids=str)
def test_a_window_must_be_consecutive_steps(gradients: Gradients, window: range) -> None:
    for unroll in (ExactUnroll(), FullGraphUnroll(), DetachedUnroll()):
        with pytest.raises(ValueError, match=r"must be consecutive steps of 0\.\.5, got range"):
            gradients(unroll, 6, SGD(), window)


def test_windows_that_partition_the_steps_add_up_to_the_whole(gradients: Gradients) -> None:
    """What images receive from steps 0..1 and, exactly, from 2..5; for SGD nothing else carries their effect."""
    parts = [gradients(ExactUnroll(), 6, SGD(), window)[0] for window in (range(0, 2), range(2, 6))]
    torch.testing.assert_close(parts[0] + parts[1], gradients(ExactUnroll(), 6)[0])


def test_all_unrolls_arrive_at_the_same_students(
    derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs
) -> None:
    for optimizer in OPTIMIZERS:
        exact, full, detached = (
            unroll(InnerLoop(derivatives, optimizer, minibatch, 5, range(2, 4)), *inputs)
            for unroll in (ExactUnroll(), FullGraphUnroll(), DetachedUnroll())
        )
        torch.testing.assert_close(exact, full)
        torch.testing.assert_close(exact, detached)


def test_two_students_at_once_are_two_single_ones(
    derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs, gradients: Gradients, stream: Stream
) -> None:
    images, labels, student_lr, start = inputs
    direction = randn(stream.at("direction"), *start.shape)

    def alone(k: int) -> tuple[Tensor, ...]:
        def mine(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
            x, y = minibatch(images, labels, step)
            return x[k : k + 1], y[k : k + 1]

        theta = ExactUnroll()(InnerLoop(derivatives, SGD(), mine, 4), images, labels, student_lr, start[k : k + 1])
        return torch.autograd.grad((theta * direction[k]).sum(), inputs)

    total = tuple(first + second for first, second in zip(alone(0), alone(1), strict=True))
    assert_equal(gradients(ExactUnroll(), 4), total)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_exact_unroll_gradient_against_finite_differences(
    derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs, optimizer: InnerOptimizer
) -> None:
    assert gradcheck(lambda *inputs: ExactUnroll()(InnerLoop(derivatives, optimizer, minibatch, 2), *inputs), inputs)


def test_detached_unroll_is_not_the_gradient_of_the_unroll(gradients: Gradients) -> None:
    """Documents TESLA's approximation: a large relative difference on the pixels."""
    detached, full = gradients(DetachedUnroll(), 10)[0], gradients(FullGraphUnroll(), 10)[0]
    assert (detached - full).norm() > 0.05 * full.norm()


def test_detached_unroll_is_exact_for_one_step_on_images_labels_and_lr(gradients: Gradients) -> None:
    assert_equal(gradients(DetachedUnroll(), 1)[:3], gradients(FullGraphUnroll(), 1)[:3])


def test_classes_have_no_gradient_and_are_soft_labels_of_zeros_and_ones(
    derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs
) -> None:
    images, _, student_lr, start = inputs
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    hot = torch.nn.functional.one_hot(classes).double()
    for unroll in (ExactUnroll(), FullGraphUnroll(), DetachedUnroll()):
        loop = InnerLoop(derivatives, Momentum(0.9), minibatch, 4)
        hard, soft = (unroll(loop, images, labels, student_lr, start) for labels in (classes, hot))
        assert_equal(
            *(torch.autograd.grad(theta.square().sum(), (images, student_lr, start)) for theta in (hard, soft))
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_detached_unroll_is_each_steps_direct_dependence(
    derivatives: Derivatives,
    minibatch: Minibatch,
    inputs: Inputs,
    gradients: Gradients,
    stream: Stream,
    optimizer: InnerOptimizer,
) -> None:
    """Oracle: theta_N = theta_0 - alpha * sum of directions, with gradients at a theta_i treated as constant."""
    images, labels, student_lr, start = inputs
    theta, state, total = start.detach(), optimizer.initial(start), torch.zeros_like(start)
    for i in range(4):
        theta = theta.detach().requires_grad_()
        loss = derivatives.loss(theta, *minibatch(images, labels, i)).sum()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        direction, state = optimizer.direction(state, gradient, i)
        total = total + direction
        theta = theta - student_lr * direction
    along = randn(stream.at("direction"), *start.shape)
    expected = torch.autograd.grad(((start - student_lr * total) * along).sum(), (images, labels, student_lr))
    assert_equal(gradients(DetachedUnroll(), 4, optimizer)[:3], expected)


def test_gradient_can_be_taken_twice_and_adds_up(
    derivatives: Derivatives, minibatch: Minibatch, inputs: Inputs, stream: Stream
) -> None:
    """Two terms that share one unroll: the sum of their gradients is the gradient of their sum."""
    u, v = randn(stream, 2, *inputs[3].shape)
    student = ExactUnroll()(InnerLoop(derivatives, Momentum(), minibatch, 3), *inputs)
    of_sum = torch.autograd.grad((student * (u + v)).sum(), inputs, retain_graph=True)
    of_u = torch.autograd.grad((student * u).sum(), inputs, retain_graph=True)
    of_v = torch.autograd.grad((student * v).sum(), inputs)
    for total, a, b in zip(of_sum, of_u, of_v, strict=True):
        torch.testing.assert_close(total, a + b)
