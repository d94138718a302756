"""Hosts without experts against plain transcriptions of their formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, Adam
from mim4dd_pl.engine.unroll import FullGraphUnroll
from mim4dd_pl.networks.base import Network
from mim4dd_pl.objectives.base import Objective, Scene
from mim4dd_pl.objectives.distribution_matching import DistributionMatching
from mim4dd_pl.objectives.gradient_matching import GradientMatching
from mim4dd_pl.objectives.information_alone import InformationAlone
from mim4dd_pl.objectives.performance_matching import PerformanceMatching
from mim4dd_pl.objectives.sampling import Chunks
from mim4dd_pl.objectives.synthetic import SyntheticImages
from mim4dd_pl.stored.trajectories import Segment
from tests.conftest import randn, to_module


@pytest.fixture
def synthetic(stream: Stream) -> SyntheticImages:
    """Two images of each of three classes, with soft labels."""
    synthetic = SyntheticImages((1, 4, 4), 3, 2, student_lr=0.2, soft=True).double()
    synthetic.start_from(randn(stream.at("images"), 6, 1, 4, 4))
    synthetic.start_labels_from(randn(stream.at("labels"), 6, 3))
    return synthetic


@pytest.fixture
def scene(real: ImageSet, stream: Stream) -> Scene:
    return Scene(stream.at("step"), [stream.at("segment", number) for number in range(2)], real)


def drawn(scene: Scene, stream: Stream, per_class: int) -> tuple[Tensor, Tensor]:
    """The real images of a segment, as the hosts draw them."""
    return scene.real.batch(scene.real.per_class(per_class, stream.at("real").generator()))


def student(network: FlatNetwork, stream: Stream) -> Network:
    return to_module(network, network.initial(stream.at("student")).double())


def performance(network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, stream: Stream) -> Tensor:
    """Four steps of momentum 0.9 on all of S, then the loss on real images, all flipped or turned alike."""
    module, augment = student(network, stream), DSA(["flip", "rotate"])
    theta: dict[str, Tensor] = dict(module.named_parameters())
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    x = augment.siamese(synthetic.images, stream.at("augment"))
    for _ in range(4):
        loss = cross_entropy(functional_call(module, theta, (x,)), synthetic.decoded().targets)
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        velocity = {name: 0.9 * v + g for (name, v), g in zip(velocity.items(), gradients, strict=True)}
        theta = {name: p - synthetic.student_lr * velocity[name] for name, p in theta.items()}
    images, labels = drawn(scene, stream, 2)
    return cross_entropy(functional_call(module, theta, (augment.siamese(images, stream.at("augment")),)), labels)


def gradients(network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, stream: Stream) -> Tensor:
    """Eq. 9 and 10 of Zhao et al., output by output of each weight, siamese augmentation for each class."""
    module = student(network, stream)
    weights = [p for p in module.parameters() if p.ndim > 1]
    images, labels = drawn(scene, stream, 2)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        mine, own = synthetic.labels == c, labels == c
        x, x_real = (DSA().siamese(part, stream.at("augment", c)) for part in (synthetic.images[mine], images[own]))
        ours = torch.autograd.grad(
            cross_entropy(module(x), synthetic.decoded().targets[mine]), weights, create_graph=True
        )
        theirs = torch.autograd.grad(cross_entropy(module(x_real), labels[own]), weights)
        for a, b in zip(ours, theirs, strict=True):
            for row, other in zip(a, b, strict=True):
                total = total + 1 - (row * other).sum() / (row.norm() * other.norm() + 1e-6)
    return total


def distributions(network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, stream: Stream) -> Tensor:
    """Eq. 5 of Zhao & Bilen, the last features, siamese augmentation for each class."""
    module, (images, labels) = student(network, stream), drawn(scene, stream, 2)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        x = DSA().siamese(synthetic.images[synthetic.labels == c], stream.at("augment", c))
        x_real = DSA().siamese(images[labels == c], stream.at("augment", c))
        means = [module.layers(part)[-1].flatten(1).mean(0) for part in (x, x_real)]
        total = total + (means[0] - means[1]).norm() ** 2
    return total


Transcription = Callable[[FlatNetwork, SyntheticImages, Scene, Stream], Tensor]
HOSTS: list[tuple[Objective, Transcription]] = [
    (PerformanceMatching(4, real_per_class=2, augment=DSA(["flip", "rotate"])), performance),
    (
        PerformanceMatching(4, real_per_class=2, augment=DSA(["flip", "rotate"]), unroll=FullGraphUnroll()),
        performance,
    ),
    (GradientMatching(real_per_class=2, augment=DSA()), gradients),
    (DistributionMatching(real_per_class=2, augment=DSA()), distributions),
]


@pytest.mark.parametrize(("objective", "transcription"), HOSTS, ids=lambda value: getattr(value, "__name__", ""))
def test_loss_and_gradient_equal_the_transcription(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, objective: Objective, transcription: Transcription
) -> None:
    """Each of two segments, computed together, with soft labels."""
    assert synthetic.label_logits is not None
    learned = (synthetic.images, synthetic.student_lr, synthetic.label_logits)
    match = objective(Derivatives(network), synthetic.decoded(), scene)
    for k in range(2):
        expected = transcription(network, synthetic, scene, scene.streams[k])
        torch.testing.assert_close(match.loss[k], expected)
        for ours, oracle in zip(
            torch.autograd.grad(match.loss[k], learned, retain_graph=True, materialize_grads=True),
            torch.autograd.grad(expected, learned, retain_graph=True, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("objective", "_"), HOSTS)
def test_hosts_without_experts_show_none(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, objective: Objective, _: Transcription
) -> None:
    assert not objective.reads_experts
    match = objective(Derivatives(network), synthetic.decoded(), scene)
    assert match.expert is None
    assert match.student.shape == (2, network.num_parameters)


def test_a_random_window_equals_truncated_autograd(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    exact, whole = (
        PerformanceMatching(5, window=2, real_per_class=2, optimizer=Adam(), unroll=unroll)
        for unroll in (None, FullGraphUnroll())
    )
    grads = []
    for objective in (exact, whole):
        match = objective(Derivatives(network), synthetic.decoded(), scene)
        grads.append(torch.autograd.grad(match.loss.sum(), (synthetic.images, synthetic.student_lr)))
    for ours, oracle in zip(*grads, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-12)


def test_students_are_trained_for_every_number_of_steps_from_the_window_to_all(stream: Stream) -> None:
    """The same for all segments of an outer step, another from step to step."""
    objective = PerformanceMatching(5, window=2)
    assert {objective._steps(stream.at(step)) for step in range(40)} == {2, 3, 4, 5}
    assert {PerformanceMatching(5)._steps(stream.at(step)) for step in range(5)} == {5}


def test_balanced_chunks_hold_as_many_of_each_class_and_a_pass_every_image(stream: Stream) -> None:
    chunks = Chunks(3, [stream], lambda images, stream, step: images, balanced=True, num_classes=3)
    images, labels = torch.arange(12.0)[:, None, None, None], torch.arange(3).repeat_interleave(4)
    drawn = [chunks(images, labels, step) for step in range(4)]
    assert all(sorted(y[0].tolist()) == [0, 1, 2] for _, y in drawn)
    assert sorted(torch.cat([x.flatten() for x, _ in drawn]).tolist()) == list(range(12))


def test_a_network_is_trained_on_the_synthetic_images_before_gradients_are_matched(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    """One step of SGD where the stream says so; none where it says zero."""
    match = GradientMatching(2, student_steps=1)(Derivatives(network), synthetic.decoded(), scene)
    moved = []
    for trained, stream in zip(match.student, scene.streams, strict=True):
        module = student(network, stream)
        if int(torch.randint(2, (), generator=stream.at("steps").generator())):
            cross_entropy(module(synthetic.images), synthetic.decoded().targets).backward()
            for p in module.parameters():
                assert p.grad is not None
                p.data -= 0.2 * p.grad
        torch.testing.assert_close(trained, network.flatten(module).detach())
        moved.append(not torch.equal(trained, network.initial(stream.at("student")).double()))
    assert set(moved) == {True, False}


def test_the_term_alone_matches_nothing_and_shows_the_expert(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, stream: Stream
) -> None:
    rows = randn(stream.at("experts"), 2, 2, network.num_parameters)
    match = InformationAlone(3)(Derivatives(network), synthetic.decoded(), Scene(stream, [], segments=Segment(*rows)))
    assert match.expert is not None
    assert torch.equal(match.expert, rows[1])
    assert match.loss.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(match.loss.sum(), synthetic.images)
    assert not gradient.any()


def test_a_host_asks_for_what_it_reads_and_a_scene_without_says_so(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    empty = Scene(scene.step, scene.streams)
    for host in (PerformanceMatching(2), GradientMatching(), DistributionMatching()):
        with pytest.raises(ValueError, match="reads real images: give them to the scene as real"):
            host(Derivatives(network), synthetic.decoded(), empty)
    with pytest.raises(ValueError, match="reads experts: give their parameters to the scene as segments"):
        InformationAlone(3)(Derivatives(network), synthetic.decoded(), empty)


def test_a_shortened_host_differs_in_its_inner_loop_only() -> None:
    whole = PerformanceMatching(9, window=5, real_per_class=7)
    assert repr(whole.shortened(3, 6)) == repr(PerformanceMatching(3, 3, 7, synthetic_batch_size=6))
    assert repr(whole.shortened(20, 6)) == repr(PerformanceMatching(9, 5, 7, synthetic_batch_size=6))
    assert whole.work(2, 3) == Work(6, gradients=7, sweeps=5)
    graph = PerformanceMatching(9, window=5, unroll=FullGraphUnroll())
    assert graph.work(2, 3) == Work(6, gradients=7, sweeps=5, one_graph=True)
    alone = DistributionMatching()
    assert alone.shortened(3, 6) is alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unroll_steps": 0}, "unroll_steps must be at least 1, got 0"),
        ({"unroll_steps": 3, "window": 4}, "window must be at most unroll_steps, got 4 and 3"),
        ({"unroll_steps": 3, "real_per_class": 0}, "real_per_class must be at least 1, got 0"),
    ],
)
def test_settings_of_performance_matching_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerformanceMatching(**settings)


def test_unbalanced_minibatches_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of the 3 classes, got 4"):
        PerformanceMatching(2, synthetic_batch_size=4, optimizer=SGD()).check(2, 3)
    with pytest.raises(ValueError, match="student_steps must be at least 0, got -1"):
        GradientMatching(student_steps=-1)
