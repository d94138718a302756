"""Distilled sets of whatever origin are read as what they are, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.stored.artefact import write_distilled
from mim4dd_pl.stored.distilled import Distilled
from mim4dd_pl.stored.foreign import read_set
from tests.conftest import randn

CLASSES = ("cat", "dog", "eel")
OURS = Normalization(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.25]))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def images(stream: Stream) -> Tensor:
    return randn(stream, 6, 3, 8, 8, dtype=torch.float32)


def read(folder: Path) -> Distilled:
    return read_set(folder, (3, 8, 8), CLASSES, OURS, 0.01)


def write(folder: Path, **tensors: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tensors.items():
        torch.save(content, folder / f"{name}.pt")
    return folder


def test_an_artefact_keeps_its_own_normalisation(images: Tensor, tmp_path: Path) -> None:
    theirs = Normalization(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.3, 0.3, 0.3]))
    written = Distilled(images, LABELS, None, torch.tensor(0.2), theirs, CLASSES, {"seed": "3"})
    write_distilled(tmp_path / "best", written)
    distilled = read(tmp_path / "best")
    assert torch.equal(distilled.images, images)
    assert torch.equal(distilled.normalization.mean, theirs.mean)
    assert float(distilled.student_lr) == pytest.approx(0.2)
    assert distilled.facts == {"seed": "3", "distilled set": str(tmp_path / "best")}


@pytest.mark.parametrize("names", [("images", "labels"), ("images_best", "labels_best")])
def test_tensors_are_images_as_networks_see_them(images: Tensor, names: tuple[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "set", **dict(zip(names, (images.double(), LABELS.int()), strict=True)))
    distilled = read(folder)
    assert torch.equal(distilled.images, images.double().float())
    assert torch.equal(distilled.labels, LABELS)
    assert distilled.label_logits is None
    assert float(distilled.student_lr) == pytest.approx(0.01)
    assert distilled.normalization is OURS


@pytest.mark.parametrize("lr", [torch.tensor(0.3), torch.tensor([0.3]), 0.3])
def test_a_learning_rate_comes_with_them(images: Tensor, lr: object, tmp_path: Path) -> None:
    assert float(read(write(tmp_path / "set", images=images, labels=LABELS, lr=lr)).student_lr) == pytest.approx(0.3)


def test_soft_labels_are_probabilities_or_logits(images: Tensor, stream: Stream, tmp_path: Path) -> None:
    logits = randn(stream.at("labels"), 6, 3, dtype=torch.float32)
    probabilities = logits.softmax(1)
    stored = {"logits": logits, "exact": probabilities, "half": probabilities.half()}
    stored["rounded"] = (probabilities * 1000).round() / 1000
    for name, labels in stored.items():
        distilled = read(write(tmp_path / name, images=images, labels=labels))
        targets = distilled.training_set(torch.device("cpu")).labels
        torch.testing.assert_close(targets, probabilities, atol=1e-3, rtol=0)
        assert torch.equal(distilled.labels, logits.argmax(1))


@pytest.mark.parametrize("names", [CLASSES, ("000", "001", "002")])
def test_pictures_in_class_folders_are_normalised_as_the_recipes_data(names: tuple[str, ...], tmp_path: Path) -> None:
    pixels = torch.arange(3 * 3 * 16 * 16, dtype=torch.float32).view(3, 3, 16, 16) % 256
    for name, picture in zip(names, pixels.to(torch.uint8), strict=True):
        (tmp_path / name).mkdir()
        to_pil_image(picture).save(tmp_path / name / "0.png")
    distilled = read_set(tmp_path, (3, 16, 16), CLASSES, OURS, 0.01)
    torch.testing.assert_close(distilled.images, OURS(pixels / 255))
    assert distilled.labels.tolist() == [0, 1, 2]


def test_grey_pictures_keep_their_levels(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        to_pil_image(levels).save(tmp_path / name / "0.png")
    grey = Normalization(torch.tensor([0.0]), torch.tensor([1.0]))
    distilled = read_set(tmp_path, (1, 16, 16), CLASSES, grey, 0.01)
    torch.testing.assert_close(255 * distilled.images, levels.float().expand(3, 1, 16, 16))


@pytest.mark.parametrize(("scale", "found"), [(1, r"0\.\.1,"), (255, r"0\.\.255,"), (2, r"0\.\.2,")])
def test_pixels_that_were_never_normalised_are_refused(
    scale: float, found: str, images: Tensor, tmp_path: Path
) -> None:
    pixels = (images - images.min()) / (images.max() - images.min())
    with pytest.raises(
        StoredFileError, match=rf"holds values in {found} none below 0.*\[0\.5, 0\.4, 0\.3\]\) / \[0\.2"
    ):
        read(write(tmp_path / "set", images=scale * pixels, labels=LABELS))
    assert torch.equal(read(write(tmp_path / "set", images=OURS(pixels), labels=LABELS)).images, OURS(pixels))


def test_what_was_found_is_said_and_what_is_odd(
    images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for content, lines in ((images, 1), (images.sigmoid() - 0.05, 2), (100 * images, 2), (0.5 * images, 1)):
        caplog.clear()
        read(write(tmp_path / "set", images=content, labels=LABELS))
        assert "is taken as normalised by mean [0.5, 0.4, 0.3] and std [0.2, 0.2, 0.25]" in caplog.messages[0]
        assert f"holds values in {float(content.min()):.3g}..{float(content.max()):.3g}" in caplog.messages[0]
        assert len(caplog.messages) == lines


def test_a_class_without_an_image_is_named(images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(labels: Tensor) -> list[str]:
        caplog.clear()
        read(write(tmp_path / "set", images=images, labels=labels))
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert warned(LABELS) == warned(torch.full((6, 3), 1 / 3)) == []
    assert warned(LABELS.clamp(max=1)) == [f"{tmp_path}/set holds no image of 1 classes (eel)."]


def test_the_last_of_several_steps_is_read(images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = {f"images_{step}": images + step / 10_000 for step in (0, 500, 5000)}
    write(tmp_path / "set", **steps, **{name.replace("images", "labels"): LABELS for name in steps})
    write(tmp_path / "set", images_zca_9000=images, lr_500=0.3)
    with caplog.at_level("INFO"):
        assert torch.equal(read(tmp_path / "set").images, images + 0.5)
    assert caplog.messages[0] == f"Of 3 steps in {tmp_path}/set, images_5000.pt is read."
    one = read(tmp_path / "set/images_500.pt")
    assert torch.equal(one.images, images + 0.05)
    assert float(one.student_lr) == pytest.approx(0.3)
    write(tmp_path / "set", images=images, labels=LABELS)
    assert torch.equal(read(tmp_path / "set").images, images)


def test_results_of_dc_are_read(images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accuracies = {"ConvNet": [np.float64(0.25), np.float32(0.5), 0.5]}
    results = {"data": [[images + 1, LABELS], [images, LABELS]], "accs_all_exps": accuracies}
    folder = write(tmp_path / "set", res_DC_set_ConvNet_2ipc=results)
    with caplog.at_level("INFO"):
        for path in (folder, folder / "res_DC_set_ConvNet_2ipc.pt"):
            distilled = read(path)
            assert torch.equal(distilled.images, images)
            assert torch.equal(distilled.labels, LABELS)
            assert distilled.facts["distilled set"] == str(path)
    assert "Of 2 experiments in" in caplog.messages[0]
    write(folder, res_DM=results)
    with pytest.raises(StoredFileError, match=r"holds res_DC_set_ConvNet_2ipc\.pt and 1 more: name one of them"):
        read(folder)


@pytest.mark.parametrize("data", [[], [[1]], {"a": 1}, [torch.zeros(2)], None])
def test_results_without_images_are_refused(data: object, tmp_path: Path) -> None:
    with pytest.raises(StoredFileError, match=r"data of .*res\.pt must be a list of \[images, labels\]"):
        read(write(tmp_path / "set", res=dict(data=data)) / "res.pt")


def test_a_file_of_an_artefact_or_of_a_set_stands_for_its_folder(images: Tensor, tmp_path: Path) -> None:
    written = Distilled(images, LABELS, None, torch.tensor(0.2), OURS, CLASSES, {})
    write_distilled(tmp_path / "best", written, tensors=True)
    for name in ("distilled.safetensors", "manifest.json", "images.pt"):
        assert float(read(tmp_path / "best" / name).student_lr) == pytest.approx(0.2)
    folder = write(tmp_path / "set", images=images, labels=LABELS, lr=0.3)
    assert float(read(folder / "images.pt").student_lr) == pytest.approx(0.3)
    with pytest.raises(StoredFileError, match=r"labels\.pt is no set of images: give the folder, its images\.pt"):
        read(folder / "labels.pt")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, ("/nonexistent",))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"images": torch.zeros(6, 3, 8, 8)}, r"labels\.pt is missing"),
        ({"images": torch.zeros(6, 8, 8), "labels": LABELS}, r"images\.pt must hold normalised images of shape"),
        ({"images": torch.zeros(6, 3, 8, 8, dtype=torch.uint8), "labels": LABELS}, r"got torch\.uint8 of shape"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": LABELS[:5]}, r"labels\.pt must hold 6 classes"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": LABELS + 1}, r"holds classes 1\.\.3, expected 0\.\.2"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": torch.zeros(6, 4)}, r"soft labels of shape \(6, 3\), got"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": torch.tensor(1)}, r"got torch\.int64 of shape \(\)"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": LABELS.to(torch.uint16)}, r"got torch\.uint16"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": torch.full((6, 3), torch.nan)}, "labels that are not finite"),
        ({"images": torch.zeros(6, 3, 8, 8).to_sparse(), "labels": LABELS}, "images.pt"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": LABELS, "lr": torch.tensor(1j)}, "one positive number"),
        (
            {"images": torch.zeros(6, 3, 9, 9), "labels": LABELS},
            r"images of \(3, 9, 9\) of 3 classes \(cat, dog, eel\), the recipe's",
        ),
        ({"images": torch.full((6, 3, 8, 8), torch.nan), "labels": LABELS}, "images that are not finite"),
        ({"images": torch.zeros(6, 3, 8, 8), "labels": LABELS, "lr": -1.0}, r"lr\.pt must hold one positive number"),
        ({"images": [1, 2], "labels": LABELS}, r"images\.pt holds a list, expected a dense tensor"),
        ({"images": Hostile(), "labels": LABELS}, r"images\.pt is no readable file of tensors"),
    ],
)
def test_tensors_that_are_no_distilled_set_are_refused(
    tensors: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StoredFileError, match=message):
        read(write(tmp_path / "set", **tensors))


@pytest.mark.parametrize("content", [b"", b"\x80\x02(R.", b"\x80\x02t.", b"\x80\x02J.", b"no tensor"])
def test_a_damaged_file_is_refused(content: bytes, images: Tensor, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", images=images, labels=LABELS)
    (folder / "labels.pt").write_bytes(content)
    with pytest.raises(StoredFileError, match=r"labels\.pt is no readable file of tensors"):
        read(folder)


def test_an_artefact_of_other_classes_is_refused(images: Tensor, tmp_path: Path) -> None:
    written = Distilled(images, LABELS, None, torch.tensor(0.2), OURS, ("cat", "eel", "dog"), {})
    write_distilled(tmp_path / "best", written)
    with pytest.raises(StoredFileError, match=r"3 classes \(cat, eel, dog\), the recipe's data are"):
        read(tmp_path / "best")


def test_a_folder_of_nothing_or_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoredFileError, match="No distilled set in"):
        read(tmp_path / "absent")
    (tmp_path / "bird").mkdir()
    with pytest.raises(StoredFileError, match=r"neither manifest\.json nor images\.pt.*no class of the recipe's.*bird"):
        read(tmp_path)
    (tmp_path / "bird").rename(tmp_path / "cat")
    with pytest.raises(StoredFileError, match="folders for 1 of 3 classes"):
        read(tmp_path)
