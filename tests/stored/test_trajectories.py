"""A store gives back what was written, and refuses by name what does not fit."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.identity import Identity, identity
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.alexnet import AlexNet
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.networks.external import External
from mim4dd_pl.networks.resnet import ResNet18
from mim4dd_pl.networks.small import MLP, LeNet
from mim4dd_pl.networks.vgg import VGG11
from mim4dd_pl.networks.vit import ViT
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.segments import SegmentReader
from mim4dd_pl.stored.trajectories import Segment, TrajectorySpec, TrajectoryStore
from tests.conftest import randn

NETWORK = Identity("ConvNet", {"depth": 1, "activation": "relu"}, {"depth": None, "activation": "relu"})
TRAINING = identity(Training(epochs=3, lr=0.01, augment=DSA(["crop", "flip"])))
SPEC = TrajectorySpec("digits", "0a", NETWORK, 7, TRAINING, 3, 0)


def of_training(**settings: Any) -> TrajectorySpec:
    return replace(SPEC, training=identity(replace(Training(3, lr=0.01, augment=DSA(["crop", "flip"])), **settings)))


@pytest.fixture
def trajectory(stream: Stream) -> torch.Tensor:
    return randn(stream, 4, 7, dtype=torch.float32)


@pytest.fixture
def store(tmp_path: Path, trajectory: torch.Tensor) -> TrajectoryStore:
    store = TrajectoryStore(tmp_path / "experts", SPEC)
    store.add(2, trajectory)
    return store


def test_segments_are_the_rows_that_were_written(store: TrajectoryStore, trajectory: torch.Tensor) -> None:
    reopened = TrajectoryStore(store.root, SPEC)
    assert reopened.finished == [2]
    segment = reopened.segment(2, 1, 2)
    assert torch.equal(segment.start, trajectory[1])
    assert torch.equal(segment.target, trajectory[3])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(SPEC, network=Identity("ConvNet", NETWORK | {"depth": 2}, {})),
            "their network.depth is 1, this run's is 2",
        ),
        (
            replace(SPEC, network=Identity("AlexNet", {"width": 8}, {})),
            r"their network is ConvNet\(depth=1\), this run's is AlexNet\(width=8\)",
        ),
        (of_training(lr=0.05), "their training.lr is 0.01, this run's is 0.05"),
        (of_training(sharpness_radius=0.1), "their training.sharpness_radius is 0.0, this run's is 0.1"),
        (of_training(augment=None), r"their training.augment is DSA\(crop, flip\), this run's is None"),
        (
            of_training(augment=DSA(["crop"])),
            r"their training.augment.operations is \['crop', 'flip'\], this run's is \['crop'\]",
        ),
        (replace(SPEC, data_set="mnist"), "their data set is digits, this run's is mnist"),
        (replace(SPEC, data_fingerprint="1b"), "their data fingerprint is 0a"),
        (replace(SPEC, epochs=9), "their epochs is 3, this run's is 9"),
        (replace(SPEC, seed=1), "their seed is 0, this run's is 1"),
        (replace(SPEC, storage="bfloat16"), "their storage is float32, this run's is bfloat16"),
    ],
)
def test_a_store_of_other_experts_is_refused_by_name(
    store: TrajectoryStore, other: TrajectorySpec, message: str
) -> None:
    with pytest.raises(StoredFileError, match=message):
        TrajectoryStore(store.root, other)


def rewrite(store: TrajectoryStore, **changes: object) -> None:
    """Change what the manifest says, outside of the experts."""
    path = store.root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_settings_younger_than_an_expert_count_as_their_default(store: TrajectoryStore) -> None:
    old = {name: value for name, value in TRAINING.items() if name != "sharpness_radius"}
    rewrite(store, training=old)
    assert TrajectoryStore(store.root, SPEC).finished == [2]
    with pytest.raises(StoredFileError, match=r"their training\.sharpness_radius is 0\.0, this run's is 0\.1"):
        TrajectoryStore(store.root, of_training(sharpness_radius=0.1))


@pytest.mark.parametrize(
    ("name", "before", "value"), [("lr_drops", [], [0.5]), ("lr_factor", 0.1, 0.2), ("cutmix", 0.0, 0.5)]
)
def test_experts_older_than_cutmix_and_drops_are_those_without(
    store: TrajectoryStore, name: str, before: object, value: object
) -> None:
    rewrite(store, training={key: each for key, each in TRAINING.items() if key != name})
    assert TrajectoryStore(store.root, SPEC).finished == [2]
    said = re.escape(f"their training.{name} is {before}, this run's is {value}")
    with pytest.raises(StoredFileError, match=said):
        TrajectoryStore(store.root, of_training(**{name: value}))


def test_settings_that_this_version_does_not_know_are_refused(store: TrajectoryStore) -> None:
    rewrite(store, training=TRAINING | {"mixup": 0.2})
    with pytest.raises(StoredFileError, match=r"their training\.mixup is 0\.2, this run's is missing"):
        TrajectoryStore(store.root, SPEC)


OLD_NETWORKS: list[tuple[NetworkFactory, str]] = [
    (partial(ConvNet, depth=2, width=32), "ConvNet(depth=2, width=32, norm=instance, pooling=avg)"),
    (
        partial(ConvNet, depth=1, width=4, activation="leaky_relu"),
        "ConvNet(depth=1, width=4, norm=instance, pooling=avg, activation=leaky_relu)",
    ),
    (partial(AlexNet, width=8), "AlexNet(width=8)"),
    (LeNet, "LeNet()"),
    (partial(MLP, width=8), "MLP(width=8)"),
    (partial(VGG11, width=4), "VGG11(width=4, norm=instance)"),
    (partial(ResNet18, width=4), "ResNet18(width=4, norm=instance)"),
    (partial(ViT, dim=6, depth=1), "ViT(patch=4, depth=1, dim=6, heads=3)"),
    (
        partial(External, model="torchvision.models.resnet18", layers=["layer1", "layer4"], settings={"weights": None}),
        "External(model=torchvision.models.resnet18, layers=['layer1', 'layer4'], settings={'weights': None})",
    ),
]
OLD_TRAININGS = [
    (
        Training(epochs=4, batch_size=32, lr=0.05, augment=DSA(["crop", "scale", "rotate"])),
        "Training(epochs=4, batch_size=32, lr=0.05, momentum=0.0, weight_decay=0.0, decay_at_half=False, "
        "augment=DSA(crop, scale, rotate))",
    ),
    (
        Training(epochs=4, momentum=0.5, decay_at_half=True, sharpness_radius=0.1),
        "Training(epochs=4, batch_size=256, lr=0.01, momentum=0.5, weight_decay=0.0, decay_at_half=True, "
        "augment=None), sharpness_radius=0.1",
    ),
]


@pytest.mark.parametrize("number", range(len(OLD_NETWORKS)), ids=[text.split("(")[0] for _, text in OLD_NETWORKS])
def test_a_folder_of_version_0_1_0_stays_readable_and_takes_further_experts(number: int, tmp_path: Path) -> None:
    """Its manifest held texts, of the settings that there were; those here are what 0.1.0 wrote."""
    network, network_text = OLD_NETWORKS[number]
    training, training_text = OLD_TRAININGS[number % 2]
    flat = FlatNetwork(network, (1, 32, 32), 10)
    spec = replace(Experts("unused", training).spec(flat, "digits", "0a"), num_parameters=7)
    store, zeros = TrajectoryStore(tmp_path, spec), torch.zeros(5, 7)
    store.add(0, zeros)
    rewrite(store, schema=2, network=network_text, training=training_text)
    assert TrajectoryStore.open(tmp_path).spec.network == network_text
    old = TrajectoryStore(tmp_path, spec)
    old.add(1, zeros)
    assert TrajectoryStore(tmp_path, spec).finished == [0, 1]
    assert json.loads((tmp_path / "manifest.json").read_text())["schema"] == 3


def test_other_experts_of_version_0_1_0_are_refused(store: TrajectoryStore) -> None:
    rewrite(store, schema=2, network="ConvNet(depth=1)", training="Training(epochs=9)")
    with pytest.raises(
        StoredFileError, match=r"their training is Training\(epochs=9\), this run's is Training\(epochs=3"
    ):
        TrajectoryStore(store.root, SPEC)


def test_an_opened_store_shows_what_it_holds_and_takes_nothing(
    store: TrajectoryStore, trajectory: torch.Tensor
) -> None:
    opened = TrajectoryStore.open(store.root)
    assert (opened.finished, opened.spec) == ([2], SPEC)
    assert torch.equal(opened.segment(2, 1, 2).target, trajectory[3])
    with pytest.raises(RuntimeError, match="was opened for reading"):
        opened.add(3, trajectory)


def test_opening_checks_what_it_reads(store: TrajectoryStore, tmp_path: Path) -> None:
    with pytest.raises(StoredFileError, match="nothing holds no expert trajectories"):
        TrajectoryStore.open(tmp_path / "nothing")
    rewrite(store, epochs="three")
    with pytest.raises(StoredFileError, match=r"manifest\.json is damaged"):
        TrajectoryStore.open(store.root)
    rewrite(store, epochs=4)
    with pytest.raises(StoredFileError, match=r"shape \(4, 7\), expected \(5, 7\)"):
        TrajectoryStore.open(store.root)
    (store.root / "expert_0002.safetensors").write_bytes(b"other")
    with pytest.raises(StoredFileError, match=r"expert_0002\.safetensors is damaged"):
        TrajectoryStore.open(store.root)


def test_every_flipped_byte_is_noticed(store: TrajectoryStore) -> None:
    path = store.root / "expert_0002.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoredFileError, match=r"expert_0002\.safetensors is damaged"):
            TrajectoryStore(store.root, SPEC)


def test_a_flipped_bit_of_the_manifest_is_noticed_or_changes_nothing(store: TrajectoryStore) -> None:
    path = store.root / "manifest.json"
    whole, said = path.read_bytes(), []
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert TrajectoryStore(store.root, SPEC).finished == [2], bit
        except StoredFileError as error:
            said.append(str(error))
    assert all(str(store.root) in message for message in said)
    assert len(said) > 0.7 * len(range(0, 8 * len(whole), 7))  # the rest is white space


def test_a_missing_expert_is_named(store: TrajectoryStore) -> None:
    (store.root / "expert_0002.safetensors").unlink()
    with pytest.raises(StoredFileError, match=r"expert_0002\.safetensors is missing"):
        TrajectoryStore(store.root, SPEC)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1}', "null", "{"])
def test_a_broken_manifest_is_named(store: TrajectoryStore, text: str) -> None:
    (store.root / "manifest.json").write_text(text)
    with pytest.raises(StoredFileError, match=r"manifest\.json is damaged"):
        TrajectoryStore(store.root, SPEC)


def test_a_manifest_cannot_point_outside_its_folder(store: TrajectoryStore) -> None:
    path = store.root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["experts"]["2"]["file"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoredFileError, match=r"names \.\./elsewhere\.safetensors, expected expert_0002\.safetensors"):
        TrajectoryStore(store.root, SPEC)


def test_an_interrupted_write_keeps_the_finished_experts(
    store: TrajectoryStore, trajectory: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mim4dd_pl.stored.trajectories.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        store.add(3, trajectory)
    assert TrajectoryStore(store.root, SPEC).finished == [2]
    assert not list(store.root.glob(".*.tmp"))


def test_two_runs_that_share_a_folder_keep_each_others_experts(
    store: TrajectoryStore, trajectory: torch.Tensor
) -> None:
    other = TrajectoryStore(store.root, SPEC)
    store.add(0, trajectory)
    other.add(1, trajectory)
    other.add(0, trajectory + 1)
    assert TrajectoryStore(store.root, SPEC).finished == [0, 1, 2]
    assert torch.equal(TrajectoryStore(store.root, SPEC).segment(0, 0, 1).start, trajectory[0])


def test_parameters_that_are_not_finite_are_refused(store: TrajectoryStore, trajectory: torch.Tensor) -> None:
    store.add(3, torch.where(torch.arange(4)[:, None] == 3, torch.nan, trajectory))
    assert torch.equal(store.segment(3, 0, 2).start, trajectory[0])
    with pytest.raises(StoredFileError, match=r"expert_0003\.safetensors holds parameters that are not finite"):
        store.segment(3, 1, 2)


def test_a_trajectory_of_another_shape_is_refused(store: TrajectoryStore) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 7\), got \(4, 8\)"):
        store.add(3, torch.zeros(4, 8))


def test_bfloat16_halves_the_file_and_rounds_to_eight_bits(tmp_path: Path, stream: Stream) -> None:
    sizes, spec, trajectory = {}, replace(SPEC, num_parameters=10_000), randn(stream, 4, 10_000, dtype=torch.float32)
    for storage in ("float32", "bfloat16"):
        store = TrajectoryStore(tmp_path / storage, replace(spec, storage=storage))
        store.add(0, trajectory)
        segment = store.segment(0, 0, 3)
        assert segment.start.dtype == torch.float32
        torch.testing.assert_close(segment.target, trajectory[3], rtol=0 if storage == "float32" else 2**-8, atol=0)
        sizes[storage] = (store.root / "expert_0000.safetensors").stat().st_size
    assert sizes["bfloat16"] == pytest.approx(sizes["float32"] / 2, rel=0.01)


def test_segments_are_read_ahead_and_in_any_case_the_right_ones() -> None:
    """Steps of two segments, then a jump as after a resume: each read is of what was asked for."""
    read: list[tuple[int, int]] = []

    def one(step: int, index: int) -> Segment:
        read.append((step, index))
        return Segment(torch.tensor(step), torch.tensor(index))

    reader = SegmentReader(one, range(2))
    for step, index in ((0, 0), (0, 1), (1, 0), (7, 1), (8, 0)):
        assert reader.read(step, index) == Segment(torch.tensor(step), torch.tensor(index))
    assert read[:5] == [(0, 0), (0, 1), (1, 0), (1, 1), (7, 1)]  # each once, (1, 1) ahead and in vain


def test_an_error_while_reading_ahead_is_raised_at_its_segment() -> None:
    def one(step: int, index: int) -> Segment:
        if step == 1:
            raise StoredFileError("damaged")
        return Segment(torch.tensor(step), torch.tensor(index))

    reader = SegmentReader(one, range(1))
    reader.read(0, 0)
    with pytest.raises(StoredFileError, match="damaged"):
        reader.read(1, 0)
