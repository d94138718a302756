"""Files made to harm: none runs code, fills the memory, leads out of its folder or blocks; each is refused by name."""

import json
import os
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mim4dd_pl.basics import machine
from mim4dd_pl.basics.errors import DataError, StoredFileError
from mim4dd_pl.basics.files import sha256
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.folder import ImageFolder
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.stored.artefact import read_distilled, write_distilled
from mim4dd_pl.stored.distilled import Distilled
from mim4dd_pl.stored.foreign import read_set
from tests.conftest import randn
from tests.fakes import noise, write_pictures

PLAIN = Normalization(torch.tensor([0.5]), torch.tensor([0.2]))


@pytest.fixture
def artefact(tmp_path: Path, stream: Stream) -> Path:
    images, labels = randn(stream, 4, 1, 4, 4, dtype=torch.float32), torch.tensor([0, 0, 1, 1])
    distilled = Distilled(images, labels, None, torch.tensor(0.02), PLAIN, ("cat", "dog"), {"recipe": "lr 0.5"})
    write_distilled(tmp_path / "best", distilled, tensors=True)
    return tmp_path / "best"


def claim(folder: Path, **changes: Any) -> None:
    """Change what the manifest says, or with None drop it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, about: object, **tensors: Tensor) -> None:
    """Other tensors, with a manifest that fits."""
    path = folder / "distilled.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"mim4dd_pl": json.dumps(about)})
    claim(folder, sha256={path.name: sha256(path)})


def test_a_flipped_bit_anywhere_in_an_artefact_is_reported_by_name_or_changes_nothing(
    artefact: Path, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    before, silent = read_distilled(artefact), 0
    files = sorted(path for path in artefact.rglob("*") if path.is_file())
    for path in files:
        whole = path.read_bytes()
        for bit in torch.randint(8 * len(whole), (40,), generator=stream.at(path.name).generator()).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            caplog.clear()
            said = ""
            try:
                after = read_distilled(artefact)
            except StoredFileError as error:
                said = str(error)
            if said:
                assert str(artefact) in said
                continue
            assert all(torch.equal(tensor, after.tensors()[name]) for name, tensor in before.tensors().items())
            assert (after.classes, after.facts) == (before.classes, before.facts)
            assert caplog.text or path.name == "manifest.json", (path, bit)
            silent += not caplog.text
        path.write_bytes(whole)
    assert silent < 20  # white space of the manifest


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "preview/../../x", "./sheet.png", "a//b", "", "x\0", "link/x"])
def test_a_manifest_does_not_lead_out_of_its_folder(artefact: Path, name: str) -> None:
    (artefact / "link").symlink_to("..")
    hashes = json.loads((artefact / "manifest.json").read_text())["sha256"]
    claim(artefact, sha256={**hashes, name: "0"})
    with pytest.raises(StoredFileError, match=r"manifest\.json names .*, which is no path inside its folder"):
        read_distilled(artefact)


def test_tensors_behind_a_link_out_of_the_folder_are_refused(artefact: Path) -> None:
    (artefact / "distilled.safetensors").rename(artefact.parent / "elsewhere")
    (artefact / "distilled.safetensors").symlink_to(artefact.parent / "elsewhere")
    with pytest.raises(StoredFileError, match=r"names 'distilled\.safetensors', which is no path inside its folder"):
        read_distilled(artefact)


def test_files_that_the_manifest_does_not_name_are_left_alone(artefact: Path) -> None:
    (artefact / ".DS_Store").write_text("a file of the system's")
    assert len(read_distilled(artefact).labels) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[" * 10**6, "nested too deeply"), (b" " * 2**25, "33,554,432 bytes, expected at most 16,777,216")],
)
def test_a_manifest_of_absurd_depth_or_size_is_refused(artefact: Path, content: bytes, message: str) -> None:
    (artefact / "manifest.json").write_bytes(content)
    with pytest.raises(StoredFileError, match=f"manifest.json is damaged .*{message}"):
        read_distilled(artefact)


def test_a_pipe_in_place_of_a_file_does_not_block(artefact: Path) -> None:
    for name, message in (("distilled.safetensors", "is missing"), ("manifest.json", "No distilled set")):
        (artefact / name).unlink()
        os.mkfifo(artefact / name)
        with pytest.raises(StoredFileError, match=message):
            read_distilled(artefact)


GOOD = {
    "images": torch.zeros(2, 1, 4, 4),
    "labels": torch.tensor([0, 1]),
    "student_lr": torch.tensor(0.1),
    "mean": torch.zeros(1),
    "std": torch.ones(1),
}
ABOUT = {"classes": ["cat", "dog"], "facts": {}}


@pytest.mark.parametrize(
    ("tensors", "about", "message"),
    [
        ({"images": torch.zeros(2, 16)}, {}, r"images must have shape \(S, c, h, w\)"),
        ({"labels": torch.tensor([0])}, {}, r"labels \(S,\), got"),
        ({"labels": torch.tensor([0.0, 1.0])}, {}, "labels has type torch.float32"),
        ({"labels": torch.tensor([0, 2])}, {}, r"labels lie in 0\.\.2, there are 2"),
        ({"mean": torch.zeros(3)}, {}, r"mean has shape \(3,\), expected \(1,\)"),
        ({"std": torch.zeros(1)}, {}, "std and student_lr must be positive"),
        ({"images": torch.full((2, 1, 4, 4), torch.nan)}, {}, "images holds numbers that are not finite"),
        ({"label_logits": torch.zeros(2, 3)}, {}, r"label_logits has shape \(2, 3\), expected \(2, 2\)"),
        ({"whitening.mean": torch.zeros(16)}, {}, "matrix"),
        ({"more": torch.zeros(1)}, {}, "more"),
        ({}, {"classes": [1, 2]}, "classes and facts must be text"),
        ({}, {"facts": 3}, "'int' object"),
        ({}, {"classes": None}, "'NoneType' object"),
    ],
)
def test_tensors_that_are_no_distilled_set_are_refused(
    artefact: Path, tensors: dict[str, Tensor], about: dict[str, Any], message: str
) -> None:
    rewrite(artefact, ABOUT, **GOOD)
    assert len(read_distilled(artefact).labels) == 2
    rewrite(artefact, {**ABOUT, **about}, **{**GOOD, **tensors})
    with pytest.raises(StoredFileError, match=rf"distilled\.safetensors cannot be read: .*{message}"):
        read_distilled(artefact)


def test_a_header_that_promises_more_than_the_file_has_is_refused(artefact: Path) -> None:
    path = artefact / "distilled.safetensors"
    header = json.dumps({"images": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for length in (len(header), 2**40):
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(64))
        claim(artefact, sha256={path.name: sha256(path)})
        with pytest.raises(StoredFileError, match=r"distilled\.safetensors cannot be read"):
            read_distilled(artefact)


def foreign(folder: Path) -> Distilled:
    return read_set(folder, (1, 4, 4), ("cat", "dog"), PLAIN, 0.01)


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(10**6, 1, 1000, 1000), tmp_path / "images.pt")
    torch.save(torch.tensor([0, 1]), tmp_path / "labels.pt")
    with pytest.raises(StoredFileError, match=r"images\.pt holds a tensor of 4,000,000,000,000 bytes in 1,"):
        foreign(tmp_path)


def test_a_compressed_file_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 1, 4, 4), tmp_path / "plain.pt")
    torch.save(torch.tensor([0, 1]), tmp_path / "labels.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "images.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(StoredFileError, match=r"images\.pt is no readable file of tensors \(it holds compressed data"):
        foreign(tmp_path)


def npz(path: Path, key: str = "", content: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Npz:
    """A good file but for one member."""
    images, labels = noise(4, 6, 6), np.arange(4) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with zipfile.ZipFile(path) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, content if name == f"{key}.npy" else member)
    return Npz(str(path))


def header(shape: object, dtype: str = "|u1") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_the_members_of_a_good_file_may_be_compressed(tmp_path: Path) -> None:
    assert npz(tmp_path / "set.npz", compression=zipfile.ZIP_DEFLATED).image_shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("key", "content", "compression", "message"),
    [
        ("x_train", header((10**9, 6, 6)) + bytes(144), zipfile.ZIP_STORED, "its header tells of 36,000,000,"),
        ("y_train", header((10**12,), "<i8") + bytes(32), zipfile.ZIP_STORED, "got int64|its header tells of 8,000,"),
        ("x_train", header((-4, 6, 6)) + bytes(144), zipfile.ZIP_STORED, "its header tells of"),
        ("x_train", header((4, 1, 1000)) + bytes(4000), zipfile.ZIP_STORED, "1,000x1 pixels, expected at most"),
        ("x_train", header((1, 9000, 9000)) + bytes(9000**2), zipfile.ZIP_DEFLATED, "9,000x9,000 pixels, expected"),
        ("x_train", header((4, 6, 6)) + bytes(144), zipfile.ZIP_LZMA, "compressed by method 14"),
        ("x_train", b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"), zipfile.ZIP_STORED, "npy version"),
        ("x_train", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, zipfile.ZIP_STORED, "x_train of .* cannot be read"),
    ],
)
def test_an_npz_that_claims_more_than_it_has_is_refused_before_it_is_read(
    key: str, content: bytes, compression: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        npz(tmp_path / "set.npz", key, content, compression)


def lie(path: Path, said: int, content: bytes) -> None:
    """A good file, but for training images ``content`` of which the archive says that they are ``said`` bytes."""
    labels = np.arange(4) % 2
    np.savez_compressed(path, y_train=labels, x_test=noise(4, 6, 6), y_test=labels)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", content)
        archive.getinfo("x_train.npy").file_size = said  # what is written at the end, and believed by readers


def test_an_npz_that_claims_what_no_compression_reaches_is_refused_before_it_is_read(tmp_path: Path) -> None:
    many = header((10**9, 6, 6))
    lie(tmp_path / "set.npz", len(many) + 36 * 10**9, many + bytes(144))
    with pytest.raises(DataError, match=r"x_train of .* claims 36,000,000,\d+ bytes in \d+ of the file, which cannot"):
        Npz(str(tmp_path / "set.npz"))


def test_an_npz_that_unpacks_to_more_than_its_header_says_is_refused_and_not_unpacked(tmp_path: Path) -> None:
    head = header((4, 6, 6))
    lie(tmp_path / "set.npz", len(head) + 144, head + bytes(10**8))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"x_train of .* cannot be read: Bad CRC-32"):
        Npz(str(tmp_path / "set.npz"))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns first, all images are unpacked at once."""
    images, labels = np.asfortranarray(np.zeros((50, 500, 500), np.uint8)), np.arange(50) % 2
    np.savez_compressed(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = Npz(str(tmp_path / "set.npz"))
    monkeypatch.setattr(machine, "free_memory", lambda device: 0.01)
    with pytest.raises(
        DataError, match=r"x_train needs 0\.0 GiB of memory, 0\.0 are free: save fewer images, in C order"
    ):
        list(source.load()[0].chunks)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "pets" / split / name, 2)
    return tmp_path / "pets"


def decode(root: Path) -> None:
    for split in ImageFolder(str(root), 8).load():
        list(split.chunks)


def png(width: int, height: int) -> bytes:
    """The head of a picture of such dimensions, and nothing of its pixels."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big") + bytes(4) + b"IDAT"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n"


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(10_000, 9_000), "10,000x9,000 pixels, expected at most 67,108,864"),
        (png(100_000, 100_000), "cannot be read as an image"),
        (png(1, 1000), "1x1,000 pixels, expected at most .* no side more than 64 times the other"),
        (POSTSCRIPT, "cannot be read as an image"),
    ],
    ids=["large", "larger", "long", "PostScript"],
)
def test_a_picture_is_refused_by_its_header(pets: Path, content: bytes, message: str) -> None:
    (pets / "train/cat/x.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.png.*{message}"):
        decode(pets)


def test_a_pipe_or_a_circle_of_links_among_the_pictures_does_not_block(pets: Path) -> None:
    path = pets / "train/cat/x.png"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image: it is no file"):
        decode(pets)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"x\.png"):
        decode(pets)


def test_a_folder_that_links_to_its_own_parent_is_refused(pets: Path) -> None:
    (pets / "train/cat/again").symlink_to("..", target_is_directory=True)
    with pytest.raises(DataError, match=r"again/cat is a link to a folder of the same class, .*/train/cat"):
        decode(pets)


def test_a_class_folder_may_be_a_link(pets: Path) -> None:
    (pets / "train/cat").rename(pets / "elsewhere")
    (pets / "train/cat").symlink_to("../elsewhere")
    decode(pets)
    with Image.open(pets / "train/cat/0.png") as picture:
        assert picture.size == (12, 9)
