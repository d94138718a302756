"""The exact unroll against autograd through everything, and what the approximation leaves out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.augment import DSA
from mim4dd_pl.functional import StepLoss, cross_entropy, detached_sweep, sgd_step, sgd_sweep
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.randomness import Stream
from mim4dd_pl.unroll import DetachedUnroll, ExactUnroll, FullGraphUnroll, Minibatch, Unroll
from tests.conftest import randn

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def loss(network: FlatNetwork) -> StepLoss:
    return lambda theta, x, y: cross_entropy(network(theta, x), y)


@pytest.fixture
def minibatch(stream: Stream) -> Minibatch:
    """Four of six images, another four and another augmentation at every step."""
    augment = DSA()

    def draw(images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(6, generator=stream.at("order", step).generator())[:4]
        return augment(images[chosen], stream.at("augment", step)), LABELS[chosen]

    return draw


@pytest.fixture
def inputs(network: FlatNetwork, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """Images, student learning rate and start in float64."""
    images = randn(stream.at("images"), 6, 1, 4, 4)
    start = network.initial(stream.at("start")).double()
    return images.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True), start.requires_grad_()


@pytest.fixture
def gradients(
    loss: StepLoss, minibatch: Minibatch, inputs: tuple[Tensor, Tensor, Tensor], stream: Stream
) -> Callable[[Unroll, int], tuple[Tensor, ...]]:
    """Gradients of a random linear function of theta_N on images, lr and start."""
    direction = randn(stream.at("direction"), inputs[2].numel())

    def compute(unroll: Unroll, steps: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(unroll(loss, minibatch, *inputs, steps) @ direction, inputs)

    return compute


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_exact_unroll_equals_the_full_graph(gradients: Callable[[Unroll, int], tuple[Tensor, ...]], steps: int) -> None:
    exact, full = gradients(ExactUnroll(), steps), gradients(FullGraphUnroll(), steps)
    for ours, oracle in zip(exact, full, strict=True):
        assert (ours - oracle).norm() <= 1e-10 * oracle.norm()


def test_all_unrolls_arrive_at_the_same_student(
    loss: StepLoss, minibatch: Minibatch, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    students = [unroll(loss, minibatch, *inputs, 5) for unroll in (ExactUnroll(), FullGraphUnroll(), DetachedUnroll())]
    torch.testing.assert_close(students[0], students[1])
    torch.testing.assert_close(students[0], students[2])


def test_exact_unroll_gradient_against_finite_differences(
    loss: StepLoss, minibatch: Minibatch, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    assert gradcheck(lambda images, lr, start: ExactUnroll()(loss, minibatch, images, lr, start, 2), inputs)


def test_detached_unroll_is_not_the_gradient_of_the_unroll(
    gradients: Callable[[Unroll, int], tuple[Tensor, ...]],
) -> None:
    """Documents TESLA's approximation: a large relative difference on the pixels."""
    detached, full = gradients(DetachedUnroll(), 10)[0], gradients(FullGraphUnroll(), 10)[0]
    assert (detached - full).norm() > 0.05 * full.norm()


def test_detached_unroll_is_exact_for_one_step_on_images_and_lr(
    gradients: Callable[[Unroll, int], tuple[Tensor, ...]],
) -> None:
    for ours, oracle in zip(gradients(DetachedUnroll(), 1)[:2], gradients(FullGraphUnroll(), 1)[:2], strict=True):
        torch.testing.assert_close(ours, oracle)


def test_detached_unroll_is_each_steps_direct_dependence(
    loss: StepLoss, minibatch: Minibatch, inputs: tuple[Tensor, Tensor, Tensor], stream: Stream
) -> None:
    """Oracle: theta_N = theta_0 - alpha * sum of gradients, each at a theta_i treated as constant."""
    images, student_lr, start = inputs
    direction, theta, total = randn(stream, start.numel()), start.detach(), torch.zeros_like(start)
    for i in range(4):
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(theta, *minibatch(images, i)), theta, create_graph=True)
        total = total + gradient
        theta = theta - student_lr * gradient
    expected = torch.autograd.grad((start - student_lr * total) @ direction, (images, student_lr))
    student = DetachedUnroll()(loss, minibatch, *inputs, 4)
    for ours, oracle in zip(torch.autograd.grad(student @ direction, inputs[:2]), expected, strict=True):
        torch.testing.assert_close(ours, oracle)


def test_a_sweep_is_the_vector_jacobian_product_of_a_step(
    loss: StepLoss, inputs: tuple[Tensor, Tensor, Tensor], stream: Stream
) -> None:
    images, student_lr, theta = inputs
    v = randn(stream, theta.numel())
    (gradient,) = torch.autograd.grad(loss(theta, images, LABELS), theta, create_graph=True)
    stepped = theta - student_lr * gradient
    torch.testing.assert_close(sgd_step(loss, theta, images, LABELS, student_lr), stepped.detach())
    expected = torch.autograd.grad(stepped @ v, (theta, images, student_lr))
    for ours, oracle in zip(sgd_sweep(loss, theta, images, LABELS, student_lr, v), expected, strict=True):
        torch.testing.assert_close(ours, oracle)
    assert detached_sweep(loss, theta, images, LABELS, student_lr, v).theta is v


def test_gradient_can_be_taken_twice_and_adds_up(
    loss: StepLoss, minibatch: Minibatch, inputs: tuple[Tensor, Tensor, Tensor], stream: Stream
) -> None:
    """Two terms that share one unroll: the sum of their gradients is the gradient of their sum."""
    u, v = randn(stream, 2, inputs[2].numel())
    student = ExactUnroll()(loss, minibatch, *inputs, 3)
    of_sum = torch.autograd.grad(student @ (u + v), inputs, retain_graph=True)
    of_u = torch.autograd.grad(student @ u, inputs, retain_graph=True)
    of_v = torch.autograd.grad(student @ v, inputs)
    for total, a, b in zip(of_sum, of_u, of_v, strict=True):
        torch.testing.assert_close(total, a + b)
