"""Trajectory matching against a plain transcription of its algorithm."""

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Sweep, Work
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.unroll import FullGraphUnroll, Unroll
from mim4dd_pl.objectives.base import Scene
from mim4dd_pl.objectives.synthetic import SyntheticImages
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.stored.segments import MovingWindow, Spans
from mim4dd_pl.stored.trajectories import Segment
from tests.conftest import randn, to_module


@pytest.fixture
def synthetic(stream: Stream) -> SyntheticImages:
    synthetic = SyntheticImages((1, 4, 4), 3, 2, student_lr=0.2).double()
    synthetic.start_from(randn(stream.at("images"), 6, 1, 4, 4))
    return synthetic


@pytest.fixture
def segments(network: FlatNetwork, stream: Stream) -> Segment:
    """Two of them."""
    theta = torch.stack([network.initial(stream.at(number)).double() for number in range(4)])
    return Segment(theta[:2], theta[2:])


@pytest.fixture
def scene(segments: Segment, stream: Stream) -> Scene:
    """Without real images, which this host does not read."""
    return Scene(stream.at("step"), [stream.at("segment", number) for number in range(2)], segments=segments)


def transcription(network: FlatNetwork, synthetic: SyntheticImages, segment: Segment, stream: Stream) -> Tensor:
    """Algorithm 1 of Cazenavette et al. with a module's named parameters, minibatches of 4 out of 6, N = 3, DSA."""
    module = to_module(network, segment.start)
    theta = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    for i in range(3):
        chosen = torch.randperm(6, generator=stream.at("order", i).generator())[:4]
        x = DSA()(synthetic.images[chosen], stream.at("augment", i))
        logits = torch.func.functional_call(module, theta, (x,))
        loss = torch.nn.functional.cross_entropy(logits, synthetic.labels[chosen])
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        pairs = zip(theta.items(), gradients, strict=True)
        theta = {name: p - synthetic.student_lr * gradient for (name, p), gradient in pairs}
    student = torch.cat([p.flatten() for p in theta.values()])
    ratio: Tensor = (student - segment.target).norm() ** 2 / (segment.start - segment.target).norm() ** 2
    return ratio


@pytest.mark.parametrize("unroll", [None, FullGraphUnroll()])
def test_loss_and_gradient_equal_the_transcription(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, unroll: Unroll | None
) -> None:
    """Each of two segments, computed together."""
    objective = TrajectoryMatching(3, 1, 1, synthetic_batch_size=4, augment=DSA(), unroll=unroll)
    learned = (synthetic.images, synthetic.student_lr)
    match, segments = objective(Derivatives(network), synthetic.decoded(), scene), scene.segments
    for k in range(2):
        expected = transcription(network, synthetic, Segment(*(row[k] for row in segments)), scene.streams[k])
        torch.testing.assert_close(match.loss[k], expected)
        for ours, oracle in zip(
            torch.autograd.grad(match.loss[k], learned, retain_graph=True),
            torch.autograd.grad(expected, learned),
            strict=True,
        ):
            torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-12)


def test_match_shows_the_student_with_its_graph_and_the_experts_target(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    match = TrajectoryMatching(2, 1, 1)(Derivatives(network), synthetic.decoded(), scene)
    assert match.expert is scene.segments.target
    assert match.student.requires_grad
    assert not torch.equal(match.student, scene.segments.start)


def test_a_pass_over_minibatches_uses_every_image_once(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    """Three steps of two images: all six pixels have a gradient; two steps: only four."""
    for steps, touched in ((3, 6), (2, 4)):
        match = TrajectoryMatching(steps, 1, 1, synthetic_batch_size=2)(
            Derivatives(network), synthetic.decoded(), scene
        )
        (gradient,) = torch.autograd.grad(match.loss[0], synthetic.images)
        assert int((gradient.abs().sum((1, 2, 3)) > 0).sum()) == touched


def test_last_epoch_is_the_latest_that_is_read() -> None:
    assert Spans(max_start_epoch=3, expert_epochs=2).last == 4


def test_start_epochs_move_up_to_the_last_and_stay_there() -> None:
    """T(s) = 2 + floor(4 s / 10), at most 6; from 1 on."""
    epochs = Spans(6, 1, MovingWindow(first=2, steps=10, lowest=1))
    assert [epochs.starts(step) for step in (0, 2, 3, 10, 99)] == [
        range(1, 2),
        range(1, 2),
        range(1, 3),
        range(1, 6),
        range(1, 6),
    ]
    assert Spans(6, 1).starts(0) == range(6)


def test_ignored_parameters_are_not_compared(network: FlatNetwork, synthetic: SyntheticImages, scene: Scene) -> None:
    """Half of the parameters ignored: the distance is that of the deeper half."""
    match = TrajectoryMatching(2, 1, 1, ignored_fraction=0.5)(Derivatives(network), synthetic.decoded(), scene)
    half = network.num_parameters // 2
    for loss, student, start, target in zip(match.loss, match.student, *scene.segments, strict=True):
        expected = (student - target)[half:].square().sum() / (start - target)[half:].square().sum()
        torch.testing.assert_close(loss, expected)


def test_a_minibatch_larger_than_the_set_is_refused() -> None:
    TrajectoryMatching(1, 1, 1, synthetic_batch_size=6).check(2, 3)
    with pytest.raises(ValueError, match="synthetic_batch_size is 7, there are 6 synthetic images"):
        TrajectoryMatching(1, 1, 1, synthetic_batch_size=7).check(2, 3)


def test_work_counts_what_a_segment_asks_of_the_derivatives(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    class Counting(Derivatives):
        gradients = sweeps = 0

        def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            assert images.shape[1] == 4
            self.gradients += len(theta)
            return super().gradient(theta, images, labels)

        def sweep(
            self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool = True
        ) -> Sweep:
            self.sweeps += len(theta)
            return super().sweep(theta, images, labels, cotangent, along_theta)

    derivatives, objective = Counting(network), TrajectoryMatching(5, 1, 1, synthetic_batch_size=4)
    objective(derivatives, synthetic.decoded(), scene).loss.sum().backward()
    assert objective.work(2, 3) == Work(4, derivatives.gradients // 2, derivatives.sweeps // 2)
