"""The distilled set survives the disk unchanged, is checked on opening, and explains itself."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import pil_to_tensor

from mim4dd_pl import DistilledDataset
from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import sha256
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.formation import decode
from mim4dd_pl.data.normalization import Normalization, whitened
from mim4dd_pl.stored.artefact import read_distilled, write_distilled
from mim4dd_pl.stored.distilled import Distilled, sheet
from tests.conftest import ROOT, randn


@pytest.fixture(params=["standardised", "whitened"])
def distilled(request: pytest.FixtureRequest, stream: Stream) -> Distilled:
    normalization = Normalization(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.25]))
    if request.param == "whitened":
        real = torch.randint(0, 256, (300, 3, 8, 8), generator=stream.generator(), dtype=torch.uint8)
        normalization = whitened(normalization, real, torch.arange(300))
    return Distilled(
        images=2 * randn(stream, 4, 3, 8, 8, dtype=torch.float32),
        labels=torch.tensor([0, 0, 1, 1]),
        label_logits=None,
        student_lr=torch.tensor(0.02),
        normalization=normalization,
        classes=("cat", "a/b: ünicode"),
        facts={"data set": "pets", "seed": "3"},
    )


@pytest.fixture
def folder(distilled: Distilled, tmp_path: Path) -> Path:
    write_distilled(tmp_path / "best", distilled)
    return tmp_path / "best"


def test_what_is_read_is_what_was_written(distilled: Distilled, folder: Path) -> None:
    back = read_distilled(folder)
    assert back.tensors().keys() == distilled.tensors().keys()
    assert all(torch.equal(tensor, distilled.tensors()[name]) for name, tensor in back.tensors().items())
    assert (back.classes, back.facts) == (distilled.classes, distilled.facts)


def test_an_artefact_is_read_where_there_are_no_unix_modules(folder: Path) -> None:
    """As on Windows, which has no ``fcntl`` and no ``resource`` and opens no folder to flush it."""
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")  # filelock's: no lock of its own outside of Windows without fcntl
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.fsync, os.sysconf, os.fchmod, os.mkfifo
from mim4dd_pl import DistilledDataset
data = DistilledDataset({str(folder)!r})
print(len(data), data.normalize(data.images).shape[0])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("4 4\n", "")


def test_dataset_gives_normalised_images_and_labels(distilled: Distilled, folder: Path) -> None:
    data = DistilledDataset(folder)
    image, label = data[2]
    assert len(data) == 4
    assert label == 1
    assert torch.equal(image, distilled.images[2])
    assert data.student_lr == pytest.approx(0.02)


def test_canvases_are_stored_and_the_dataset_gives_the_images_in_them(distilled: Distilled, tmp_path: Path) -> None:
    soft = randn(Stream(1), 16, 2, dtype=torch.float32)
    write_distilled(tmp_path / "set", replace(distilled, formation=2, label_logits=soft), tensors=True)
    stored, data = read_distilled(tmp_path / "set"), DistilledDataset(tmp_path / "set")
    assert stored.formation == data.formation == 2
    assert torch.equal(stored.images, distilled.images)
    assert torch.equal(data.canvases, distilled.images)
    assert torch.equal(data.images, decode(distilled.images, 2))
    assert (len(data), data.pixels().shape) == (16, (16, 3, 8, 8))
    assert data.labels.tolist() == [0] * 8 + [1] * 8
    assert torch.equal(torch.as_tensor(data[9][1]), soft.softmax(1)[9])
    given = stored.training_set(torch.device("cpu"))
    assert torch.equal(given.images, data.images)
    assert torch.equal(torch.load(tmp_path / "set/images.pt", weights_only=True), data.images)
    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    assert "2 per class, 2x2" in card
    assert "Each holds 4 smaller ones: students train on 16." in card
    assert sheet(stored).shape == sheet(distilled).shape  # pictures show canvases


def test_a_set_of_whole_images_is_what_earlier_versions_read(folder: Path) -> None:
    assert json.loads((folder / "manifest.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("formation", "message"), [(9, "formation must lie in 1..8"), (0, "formation"), ("2", "whole")]
)
def test_a_formation_that_does_not_fit_the_images_is_refused(
    distilled: Distilled, tmp_path: Path, formation: Any, message: str
) -> None:
    write_distilled(tmp_path / "set", distilled)
    path = tmp_path / "set" / "distilled.safetensors"
    about = {"schema": 2, "formation": formation, "classes": distilled.classes, "facts": {}}
    save_file(distilled.tensors(), path, {"mim4dd_pl": json.dumps(about)})
    manifest = tmp_path / "set" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["sha256"][path.name] = sha256(path)
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoredFileError, match=message):
        read_distilled(tmp_path / "set")


def test_normalize_is_the_inverse_of_how_the_images_look(distilled: Distilled, folder: Path) -> None:
    seen = replace(distilled, images=0.02 * distilled.images)  # no pixel leaves [0, 1]
    torch.testing.assert_close(
        DistilledDataset(folder).normalize(seen.pixels(range(len(seen.labels)))), seen.images, atol=1e-4, rtol=0
    )


def test_previews_are_the_images_in_8_bits(distilled: Distilled, folder: Path) -> None:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("preview/*/*.png"))
    assert paths == [f"preview/{label:03d}/{number:03d}.png" for label in range(2) for number in range(2)]
    with Image.open(folder / "preview/001/000.png") as picture:
        pixels = pil_to_tensor(picture) / 255
    torch.testing.assert_close(pixels, distilled.pixels(range(4))[2], atol=1 / 255, rtol=0)


def test_sheet_shows_a_class_in_each_row(distilled: Distilled, folder: Path) -> None:
    grid = sheet(distilled)
    assert grid.shape == (3, 2 * (64 + 4) + 4, 2 * (64 + 4) + 4)
    assert torch.equal(grid[:, 4:68:8, 4:68:8], distilled.pixels(range(4))[0])
    assert torch.equal(grid[:, 72:136:8, 4:68:8], distilled.pixels(range(4))[2])
    with Image.open(folder / "sheet.png") as picture:
        assert picture.size == (140, 140)


def test_card_names_data_recipe_and_use(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in ("pets: 2 per class", "| seed | 3 |", "| student learning rate | 0.02 |", "DistilledDataset"):
        assert text in card


def test_manifest_holds_the_hash_of_every_other_file(folder: Path) -> None:
    hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(hashes) == files - {"manifest.json"}
    assert all(sha256(folder / name) == digest for name, digest in hashes.items())


def test_ten_images_of_each_class_are_shown_and_all_are_stored(stream: Stream, tmp_path: Path) -> None:
    """Also of a set whose classes differ in size."""
    labels = torch.tensor([1] * 12 + [0] * 3)
    images, plain = randn(stream, 15, 1, 4, 4, dtype=torch.float32), Normalization(torch.zeros(1), torch.ones(1))
    write_distilled(tmp_path / "s", Distilled(images, labels, None, torch.tensor(1.0), plain, ("a", "b"), {}))
    assert len(list(tmp_path.glob("s/preview/000/*.png"))) == 3
    assert len(list(tmp_path.glob("s/preview/001/*.png"))) == 10
    assert len(DistilledDataset(tmp_path / "s")) == 15


def test_the_code_of_the_card_runs_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"real_images": torch.rand(2, 3, 8, 8)}
    exec(code, names)
    assert names["label"] == 0


def test_a_set_is_read_while_its_writer_replaces_it_and_stays_the_writers(folder: Path) -> None:
    """Between the writer's two renames the old set lies aside: a reader takes it and moves nothing."""
    aside = folder.with_name(f".{folder.name}.old")
    folder.rename(aside)
    assert len(DistilledDataset(folder)) == 4
    assert aside.exists()
    assert not folder.exists()


def test_the_same_set_has_the_same_bytes(distilled: Distilled, folder: Path, tmp_path: Path) -> None:
    write_distilled(tmp_path / "again", distilled)
    assert (folder / "manifest.json").read_bytes() == (tmp_path / "again/manifest.json").read_bytes()


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    path = folder / "distilled.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 97 + len(whole) // 200):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(StoredFileError, match=r"distilled\.safetensors is damaged"):
            DistilledDataset(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "No distilled set in"),
        ("manifest.json", b"{", r"manifest\.json is damaged"),
        ("manifest.json", b"[]", r"manifest\.json is damaged"),
        (
            "manifest.json",
            b'{"schema": 9, "sha256": {"distilled.safetensors": ""}}',
            "has schema 9, this version reads 1",
        ),
        ("distilled.safetensors", None, r"distilled\.safetensors is missing"),
    ],
)
def test_a_folder_that_is_no_artefact_is_refused(folder: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(StoredFileError, match=message):
        DistilledDataset(folder)


def test_a_pickle_under_the_artefacts_name_is_not_loaded(folder: Path) -> None:
    path = folder / "distilled.safetensors"
    torch.save({"images": torch.zeros(1)}, path)
    manifest = {"schema": 1, "sha256": {path.name: sha256(path)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoredFileError, match=r"distilled\.safetensors cannot be read"):
        DistilledDataset(folder)
