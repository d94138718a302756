"""Batch norm: the minibatch's statistics in training, measured ones when classifying."""

import logging
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import Batch, InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, Adam, InnerOptimizer, Momentum
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll, InnerLoop, Unroll
from mim4dd_pl.networks.batchnorm import BatchNorm
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.evaluator import Evaluator, Protocol
from mim4dd_pl.population.students import Classifiers, calibrated
from mim4dd_pl.population.training import Training, train
from tests.conftest import randn, to_module
from tests.networks.test_networks import arguments, assert_close, autograds

CPU = torch.device("cpu")


@pytest.fixture
def normed() -> FlatNetwork:
    """A ConvNet of two blocks with batch norm on 1x8x8 images of 3 classes."""
    return FlatNetwork(partial(ConvNet, depth=2, width=4, norm="batch"), (1, 8, 8), 3)


@pytest.fixture
def images(stream: Stream) -> InMemory:
    return InMemory(3 * randn(stream.at("images"), 12, 1, 8, 8) + 1, torch.arange(12) % 3)


@pytest.fixture
def theta(normed: FlatNetwork, stream: Stream) -> Tensor:
    """Parameters in float64, shape (P,)."""
    return normed.initial(stream.at("theta")).double()


def test_in_training_it_is_torchs_with_statistics_of_the_minibatch(images: InMemory) -> None:
    ours, torchs = BatchNorm(1).double(), nn.BatchNorm2d(1).double()
    torch.testing.assert_close(ours(images.images), torchs(images.images))
    assert not list(ours.buffers())


def test_calibrated_on_one_batch_it_classifies_this_batch_as_in_training(
    normed: FlatNetwork, theta: Tensor, images: InMemory
) -> None:
    statistics = normed.calibrate(theta, [images.images])
    torch.testing.assert_close(normed(theta, images.images, statistics), normed(theta, images.images))
    for ours, expected in zip(
        normed.layers(theta, images.images, statistics=statistics), normed.layers(theta, images.images), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_calibrated_it_classifies_each_image_alone(normed: FlatNetwork, theta: Tensor, images: InMemory) -> None:
    statistics = normed.calibrate(theta, images.images.split(4))
    alone = torch.cat([normed(theta, image[None], statistics) for image in images.images])
    torch.testing.assert_close(normed(theta, images.images, statistics), alone)


def test_calibration_is_torchs_cumulative_average_in_evaluation_mode(
    normed: FlatNetwork, theta: Tensor, images: InMemory
) -> None:
    """But for the variance's correction n / (n - 1), which torch applies; n counts images and pixels."""
    module = to_module(normed, theta)
    torchs = [nn.BatchNorm2d(4, momentum=None).double() for _ in range(2)]
    for k, norm in enumerate(torchs):
        block: Any = module.get_submodule(f"blocks.{k}")
        norm.weight, norm.bias = block[1].weight, block[1].bias
        block[1] = norm
    for batch in images.images.split(4):
        module(batch)
    for norm, n in zip(torchs, (4 * 8 * 8, 4 * 4 * 4), strict=True):
        cast(Tensor, norm.running_var).mul_((n - 1) / n)
    statistics = normed.calibrate(theta, images.images.split(4))
    torch.testing.assert_close(normed(theta, images.images, statistics), module.eval()(images.images))


def test_without_batch_norm_nothing_is_measured(network: FlatNetwork) -> None:
    def unread() -> Any:
        raise AssertionError
        yield

    assert network.calibrate(network.initial(Stream(0)), unread()) == {}


def test_a_minibatch_of_one_pixel_becomes_the_shift(stream: Stream) -> None:
    norm = BatchNorm(2).double()
    norm.bias.data = torch.tensor([1.0, 2.0]).double()
    torch.testing.assert_close(norm(randn(stream, 1, 2, 1, 1)).flatten(), norm.bias.data)


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(0.9), Adam(eps=1e-3)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "lowered"])
def test_exact_unroll_through_batch_norm_equals_the_full_graph(
    normed: FlatNetwork,
    images: InMemory,
    stream: Stream,
    optimizer: InnerOptimizer,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what the compiler is given, run as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    engine = CompiledDerivatives(normed, 6, CPU) if compiled else Derivatives(normed)
    augment, start = DSA(), torch.stack([normed.initial(stream.at(k)).double() for k in range(2)])
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(12) % 3
    inputs = (images.images.clone().requires_grad_(), labels, lr, start.requires_grad_())
    learned = [part for part in inputs if part.requires_grad]
    direction = randn(stream.at("direction"), *start.shape)

    def minibatch(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x = torch.stack([augment(images[k::2], stream.at("augment", k, step)) for k in range(2)])
        return x, labels.view(6, 2).T

    def gradients(unroll: Unroll, engine: Derivatives) -> tuple[Tensor, ...]:
        student = unroll(InnerLoop(engine, optimizer, minibatch, 5), *inputs)
        return torch.autograd.grad((student * direction).sum(), learned)

    for ours, oracle in zip(gradients(ExactUnroll(), engine), gradients(FullGraphUnroll(), engine), strict=True):
        assert (ours - oracle).norm() <= 1e-10 * oracle.norm()


def test_a_population_with_batch_norm_equals_single_trainings(
    normed: FlatNetwork, images: InMemory, stream: Stream
) -> None:
    training, streams = Training(3, batch_size=5, lr=0.1, momentum=0.9), [stream.at(k) for k in range(3)]
    theta = torch.stack([normed.initial(each).double() for each in streams])
    sets = [InMemory(images.images.roll(k, 0), images.labels) for k in range(3)]
    derivatives = Derivatives(normed)
    *_, together = train(derivatives, theta, sets, training, streams)
    for k in range(3):
        only = slice(k, k + 1)
        *_, alone = train(derivatives, theta[only], sets[only], training, streams[only])
        torch.testing.assert_close(together[only], alone, rtol=1e-9, atol=1e-11)


def test_students_are_calibrated_on_their_own_training_set(
    normed: FlatNetwork, images: InMemory, stream: Stream
) -> None:
    own = InMemory(images.images.float(), images.labels)
    other = InMemory(5 * own.images - 3, own.labels)
    evaluator = Evaluator(Protocol(Training(2, 4, 0.1)), normed, stream, CPU, tuple)
    students = evaluator.train([own, other]).classifiers
    for theta, images_of, statistics in zip(students.parameters, [own, other], students.statistics, strict=True):
        expected = calibrated(normed, theta, images_of, 4)
        assert statistics.keys() == {f"blocks.{k}.1.running_{what}" for k in (0, 1) for what in ("mean", "var")}
        assert all(torch.equal(statistics[name], expected[name]) for name in expected)


def test_classifiers_judge_an_image_whatever_its_batch(normed: FlatNetwork, theta: Tensor, images: InMemory) -> None:
    statistics = [calibrated(normed, theta, images, 4)]
    together, alone = (Classifiers(normed, [theta], statistics) for _ in range(2))
    together.update(Batch(images.images, images.labels))
    for k in range(12):
        alone.update(images.batch(torch.tensor([k])))
    assert torch.equal(together.accuracies(), alone.accuracies())


@pytest.mark.parametrize(("count", "size", "sizes"), [(12, 5, [5, 5]), (12, 50, [12]), (12, 1, [1] * 8)])
def test_calibration_reads_up_to_eight_whole_minibatches_without_replacement(
    normed: FlatNetwork, theta: Tensor, images: InMemory, count: int, size: int, sizes: list[int]
) -> None:
    class Spied(InMemory):
        def batch(self, indices: Tensor) -> Batch:
            seen.append(indices)
            return super().batch(indices)

    seen: list[Tensor] = []
    calibrated(normed, theta, Spied(images.images, images.labels), size)
    assert [len(indices) for indices in seen] == sizes
    assert len(torch.cat(seen).unique()) == sum(sizes)


def test_it_compiles(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    network = FlatNetwork(partial(ConvNet, depth=1, width=4, norm="batch"), (1, 4, 4), 3)
    inputs = arguments(network, stream)
    with caplog.at_level(logging.WARNING, "mim4dd_pl"):
        sweep = CompiledDerivatives(network, 6, CPU).sweep(*inputs)
    assert not [record for record in caplog.records if record.name.startswith("mim4dd_pl")]
    assert_close((sweep.theta, sweep.images), autograds(network, *inputs))
