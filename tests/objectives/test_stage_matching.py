"""Stage matching against a plain transcription, and which epochs it reads."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.objectives.base import Scene
from mim4dd_pl.objectives.stage_matching import InterpolatedStageMatching, StageMatching
from mim4dd_pl.objectives.synthetic import SyntheticImages
from mim4dd_pl.stored.segments import Ends, Stages
from mim4dd_pl.stored.trajectories import Segment
from tests.conftest import randn, to_module


@pytest.fixture
def synthetic(stream: Stream) -> SyntheticImages:
    """Two canvases of four images for each of three classes, with soft labels."""
    synthetic = SyntheticImages((1, 4, 4), 3, 2, soft=True, formation=2).double()
    synthetic.start_from(randn(stream.at("images"), 6, 1, 4, 4))
    synthetic.start_labels_from(randn(stream.at("labels"), 24, 3))
    return synthetic


@pytest.fixture
def scene(real: ImageSet, network: FlatNetwork, stream: Stream) -> Scene:
    start, target = (
        torch.stack([network.initial(stream.at(name, k)).double() for k in range(2)]) for name in ("start", "target")
    )
    streams = [stream.at("segment", number) for number in range(2)]
    return Scene(stream.at("step"), streams, real, Segment(start, target))


def transcription(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, k: int, theta: Tensor, constraint: float
) -> Tensor:
    """Class by class, all images alike; the classes of the real ones by their labels."""
    stream, augment = scene.streams[k], DSA(["crop", "flip"])
    images, labels, targets, _ = synthetic.decoded()
    real, real_labels = scene.real.batch(scene.real.per_class(2, stream.at("real").generator()))
    module, later = to_module(network, theta), to_module(network, scene.segments.target[k])
    loss = torch.zeros((), dtype=torch.float64)
    for label in range(3):
        ours, theirs = (
            augment.siamese(x[y == label], stream.at("augment", label))
            for x, y in ((images, labels), (real.double(), real_labels))
        )
        means = [module.layers(x)[-1].flatten(1).mean(0) for x in (ours, theirs)]
        loss = loss + (means[0] - means[1].detach()).square().sum()
        loss = loss + constraint * cross_entropy(later(ours), targets[labels == label])
    return loss


@pytest.mark.parametrize("constraint", [0.0, 1.5])
def test_loss_and_gradients_equal_a_plain_transcription(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene, constraint: float
) -> None:
    objective = StageMatching(4, real_per_class=2, augment=DSA(["crop", "flip"]), constraint=constraint)
    match = objective(Derivatives(network), synthetic.decoded(), scene)
    for k, loss in enumerate(match.loss):
        expected = transcription(network, synthetic, scene, k, scene.segments.start[k], constraint)
        assert torch.allclose(loss, expected, rtol=1e-10)
        assert synthetic.label_logits is not None
        learned = (synthetic.images, synthetic.label_logits)
        ours, theirs = (
            torch.autograd.grad(value, learned, retain_graph=True, materialize_grads=True) for value in (loss, expected)
        )
        for mine, plain in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, plain, rtol=1e-8, atol=1e-12)
        assert (float(ours[1].norm()) > 0) is (constraint > 0)


def test_the_information_term_is_shown_the_later_network(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    match = StageMatching(4, real_per_class=2)(Derivatives(network), synthetic.decoded(), scene)
    assert match.student is match.expert
    assert torch.equal(match.student, scene.segments.target)


def test_interpolated_stages_lie_between_the_first_and_the_last_epoch(
    network: FlatNetwork, synthetic: SyntheticImages, scene: Scene
) -> None:
    objective = InterpolatedStageMatching(4, real_per_class=2, augment=DSA(["crop", "flip"]), constraint=1.0)
    match = objective(Derivatives(network), synthetic.decoded(), scene)
    weights = [torch.rand((), generator=stream.at("stage").generator()).double() for stream in scene.streams]
    for k, weight in enumerate(weights):
        theta = weight * scene.segments.start[k] + (1 - weight) * scene.segments.target[k]
        expected = transcription(network, synthetic, scene, k, theta, 1.0)
        assert torch.allclose(match.loss[k], expected, rtol=1e-6)
    assert weights[0] != weights[1]


def test_stages_are_uniform_and_the_later_one_is_at_most_the_gap_away() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [Stages(4, 2).draw(0, generator) for _ in range(2000)]
    pairs = {(t, later) for t in range(5) for later in range(t, min(t + 2, 4) + 1)}
    assert set(drawn) == pairs
    for t in range(5):
        assert sum(first == t for first, _ in drawn) / 2000 == pytest.approx(0.2, abs=0.04)
    assert Ends(4).draw(0, generator) == (0, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_epoch": -1}, r"last_epoch and gap must be at least 0, got -1 and 6"),
        ({"last_epoch": 3, "gap": -1}, r"last_epoch and gap must be at least 0, got 3 and -1"),
        ({"last_epoch": 3, "constraint": -1.0}, r"constraint must be at least 0 and finite, got -1"),
        ({"last_epoch": 3, "constraint": float("nan")}, r"constraint must be at least 0 and finite, got nan"),
        ({"last_epoch": 3, "real_per_class": 0}, r"real_per_class must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageMatching(**settings)  # type: ignore[arg-type]
