"""Sources deliver what they promise in every layout they know, or say what is wrong."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from mim4dd_pl.app.recipes import short_names
from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.data import normalization, torchvision
from mim4dd_pl.data.folder import ImageFolder
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sources import Split
from mim4dd_pl.data.torchvision import CIFAR10, CIFAR100, MNIST, SVHN, Torchvision
from tests.conftest import ROOT
from tests.fakes import TORCHVISION, noise, trust_fakes, write_pictures, write_torchvision


def pixels(split: Split) -> Tensor:
    return torch.cat(list(split.chunks))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Twelve training and six test images of 5x5 RGB pixels, two classes, labels of shape (N, 1) as MedMNIST's."""
    path = tmp_path / "set.npz"
    labels = np.arange(12)[:, None] % 2
    np.savez(path, train_images=noise(12, 5, 5, 3), train_labels=labels, val_images=noise(1, 5, 5, 3),
             test_images=noise(6, 5, 5, 3), test_labels=labels[:6])  # fmt: skip
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageFolder tree of two classes with grey, transparent and oblong pictures."""
    root = tmp_path / "pets"
    for split in ("train", "val"):
        for number, label in enumerate(("cat", "dog")):
            (root / split / label).mkdir(parents=True)
            for index, mode in enumerate(("RGB", "L", "RGBA")):
                picture = Image.new(mode, (12 + index, 9), 40 * (number + 1) if mode == "L" else (200, 10, 10))
                picture.save(root / split / label / f"{index}.png")
    return root


def test_recipes_may_name_every_source_and_no_base_class() -> None:
    names = set(short_names("data.source"))
    assert {"Digits", "Npz", "ImageFolder", *TORCHVISION} <= names
    assert names.isdisjoint({"Source", "Torchvision"})


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_sets_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_fakes(monkeypatch)
    write_torchvision(tmp_path, name, train=200, test=100)
    source: Torchvision = getattr(torchvision, name)(root=str(tmp_path), download=False)
    train, test = source.load()
    assert pixels(train).shape == (200, *source.image_shape)
    assert pixels(test).dtype == torch.uint8
    assert train.labels.tolist() == [row % len(source.classes) for row in range(200)]
    assert test.labels.dtype == torch.int64
    assert set(source.files()) == set(source.stored)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(source.files().values())


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN"])
def test_torchvision_checks_what_it_unpickles(name: str, tmp_path: Path) -> None:
    """The fakes are not the published files: without the tests' patch they are refused unread."""
    write_torchvision(tmp_path, name, train=10, test=10)
    with pytest.raises(DataError, match=f"No {name} in .* not found or corrupted"):
        getattr(torchvision, name)(root=str(tmp_path), download=False).load()


def test_colours_and_rows_are_where_the_formats_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR holds an image as 3 planes of 32 rows; SVHN the last axis as the number of the image."""
    trust_fakes(monkeypatch)
    write_torchvision(tmp_path, "CIFAR10", train=10, test=3)
    write_torchvision(tmp_path, "SVHN", train=3, test=3)
    cifar, svhn = (pixels(kind(root=str(tmp_path), download=False).load()[1]) for kind in (CIFAR10, SVHN))
    assert torch.equal(cifar, torch.from_numpy(noise(3, 3072)).view(3, 3, 32, 32))
    assert torch.equal(svhn, torch.from_numpy(noise(32, 32, 3, 3)).permute(3, 2, 0, 1))


def test_cifar100_has_a_hundred_classes_in_alphabetical_order() -> None:
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)


def test_image_size_resizes(tmp_path: Path) -> None:
    write_torchvision(tmp_path, "MNIST", train=10, test=10)
    source = MNIST(str(tmp_path), download=False, image_size=16)
    assert pixels(source.load()[0]).shape == (10, *source.image_shape) == (10, 1, 16, 16)


def test_missing_mnist_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No MNIST in .* Fetch it where there is a network \(download\)"):
        MNIST(str(tmp_path), download=False).load()


def test_npz_knows_its_shape_and_loads(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "_CHUNK", 5 * 75)  # five images at a time
    source = Npz(str(npz))
    assert (source.name, source.image_shape, source.classes) == ("set", (3, 5, 5), ("0", "1"))
    train, test = source.load()
    chunks = list(train.chunks)
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    assert torch.equal(torch.cat(chunks), torch.from_numpy(noise(12, 5, 5, 3)).permute(0, 3, 1, 2))
    assert test.labels.tolist() == [0, 1] * 3


def test_npz_with_the_names_of_keras_and_grey_images(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 6, 6), np.uint8), np.array([0, 1, 0, 1])
    np.savez_compressed(tmp_path / "k.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = Npz(str(tmp_path / "k.npz"), image_size=4)
    assert source.image_shape == (1, 4, 4)
    assert pixels(source.load()[0]).shape == (4, 1, 4, 4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_of_shapes_that_pack_a_hundredfold_and_more_is_read(order: Literal["C", "F"], tmp_path: Path) -> None:
    images, labels = np.zeros((100, 64, 64), np.uint8, order), np.arange(100) % 2
    images[1::2, 16:48, 16:48] = 255
    path = tmp_path / "k.npz"
    np.savez_compressed(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert path.stat().st_size < 2 * images.size / 150
    assert torch.equal(pixels(Npz(str(path)).load()[0])[:, 0], torch.from_numpy(images))


def test_npz_with_columns_first_is_read_alike(tmp_path: Path) -> None:
    images, labels = np.asfortranarray(noise(4, 6, 6)), np.arange(4) % 2
    np.savez(tmp_path / "f.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert torch.equal(pixels(Npz(str(tmp_path / "f.npz")).load()[0])[:, 0], torch.from_numpy(noise(4, 6, 6)))


def test_npz_with_pickles_is_refused_without_loading_them(tmp_path: Path) -> None:
    objects = np.array([{}, {}], dtype=object)
    np.savez(tmp_path / "p.npz", train_images=objects, train_labels=objects, test_images=objects, test_labels=objects)
    with pytest.raises(DataError, match=r"train_images of .*p\.npz must be uint8 .* got object"):
        Npz(str(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x_train": noise(4, 6, 6).astype(float)}, "x_train of .* must be uint8 of shape .*, got float64"),
        ({"x_train": noise(4, 6, 6, 2)}, "expected one shape"),
        ({"x_train": noise(4, 6, 6, 2), "x_test": noise(4, 6, 6, 2)}, "images of 2 channels, expected 1 or 3"),
        ({"x_train": noise(4, 6, 5), "x_test": noise(4, 6, 5)}, r"images of 6x5: set image_size"),
        ({"x_train": noise(0, 6, 6)}, r"got uint8 of shape \(0, 6, 6\)"),
        ({"y_train": np.eye(4)}, "must be integers"),
        (
            {"y_train": np.eye(4, dtype=int)},
            r"must be integers of shape \(N,\) or \(N, 1\), got int64 of shape \(4, 4\)",
        ),
        ({"y_train": np.array([0, 1, -1, 1])}, r"y_train of .* lie in -1\.\.1, expected 0\.\.C-1"),
        ({"y_train": np.array([0, 1, 7, 1])}, r"y_train of .* lie in 0\.\.7, expected 0\.\.C-1"),
    ],
)
def test_npz_says_what_is_wrong(wrong: dict[str, npt.NDArray[Any]], message: str,
                                tmp_path: Path) -> None:  # fmt: skip
    right: dict[str, Any] = {
        "x_train": noise(4, 6, 6),
        "y_train": np.arange(4) % 2,
        "x_test": noise(4, 6, 6),
        "y_test": np.arange(4) % 2,
    }
    np.savez(tmp_path / "w.npz", **{**right, **wrong})
    with pytest.raises(DataError, match=message):
        Npz(str(tmp_path / "w.npz"))


def test_npz_whose_images_end_early_is_refused(npz: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(npz) as whole, zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        for name in whole.namelist():
            content = whole.read(name)
            short.writestr(name, content[:-100] if name == "train_images.npy" else content)
    with pytest.raises(DataError, match=r"train_images of .* cannot be read"):
        pixels(Npz(str(tmp_path / "short.npz")).load()[0])


def test_image_folder_converts_resizes_and_cuts(folder: Path) -> None:
    source = ImageFolder(str(folder), image_size=8)
    train, test = source.load()
    assert (source.name, source.classes) == ("pets", ("cat", "dog"))
    images = pixels(train)
    assert images.shape == pixels(test).shape == (6, 3, 8, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[1].unique().tolist() == [40]  # the grey cat
    assert images[0][:, 4, 4].tolist() == [200, 10, 10]
    assert sorted(source.files())[:2] == ["train/cat/0.png", "train/cat/1.png"]


def test_a_palette_with_a_transparent_colour_is_converted(folder: Path) -> None:
    picture = Image.new("P", (9, 9), 3)
    picture.putpalette([0, 0, 0] * 3 + [10, 20, 30])
    picture.save(folder / "train/cat/9.png", transparency=b"\xff\xff\xff\x99")  # 0.6
    images = pixels(ImageFolder(str(folder), image_size=8).load()[0])
    assert images[3, :, 0, 0].tolist() == [108, 114, 120]


def test_classes_choose_a_part_in_their_own_order(folder: Path) -> None:
    for split in ("train", "val"):
        write_pictures(folder / split / "emu", 2)
    source = ImageFolder(str(folder), image_size=8, classes=["emu", "cat"])
    train, _ = source.load()
    assert source.classes == ("emu", "cat")
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1, 1]
    assert len(pixels(train)) == 5


def test_tiny_imagenets_layout_is_read(tmp_path: Path) -> None:
    """train/<wnid>/images/, a list of the validation images' classes, and test images without labels."""
    for wnid in ("n01", "n02"):
        write_pictures(tmp_path / "train" / wnid / "images", 3, suffix="JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("0.JPEG\t0\t0\t9\t9\n")
    write_pictures(tmp_path / "val/images", 4, suffix="JPEG")
    write_pictures(tmp_path / "test/images", 1, suffix="JPEG")
    lines = [f"{number}.JPEG\tn0{2 - number % 2}\t0\t32\t44\t62\n" for number in range(4)]
    (tmp_path / "val/val_annotations.txt").write_text("".join(lines))
    train, val = ImageFolder(str(tmp_path), image_size=8).load()
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert val.labels.tolist() == [1, 0, 1, 0]
    assert len(pixels(val)) == 4
    assert ImageFolder(str(tmp_path), image_size=8, classes=["n02"]).load()[1].labels.tolist() == [0, 0]


def test_annotations_of_an_unknown_class_are_refused(folder: Path) -> None:
    (folder / "val/val_annotations.txt").write_text("0.JPEG\tcow\n")
    with pytest.raises(DataError, match=r"holds the line '0.JPEG\\tcow', expected an image and one of the classes"):
        ImageFolder(str(folder), image_size=8).load()


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_image_folder_names_a_broken_picture(folder: Path, content: bytes) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image"):
        pixels(ImageFolder(str(folder), image_size=8).load()[0])


def test_image_folder_names_a_class_that_is_missing_from_the_test(folder: Path) -> None:
    for picture in (folder / "val" / "dog").iterdir():
        picture.unlink()
    (folder / "val" / "dog").rmdir()
    with pytest.raises(DataError, match="differ in the classes dog"):
        ImageFolder(str(folder), image_size=8).load()


def test_a_class_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^classes names a class twice: cat, cat"):
        ImageFolder(str(folder), image_size=8, classes=["cat", "cat"])


@pytest.mark.skipif(not (ROOT.parent / "shared/data/unpack.py").exists(), reason="needs ../shared/data/unpack.py")
def test_real_mnist_has_the_published_number_of_each_digit(tmp_path: Path) -> None:
    shared = ROOT.parent / "shared/data"
    subprocess.run([sys.executable, shared / "unpack.py", "mnist", tmp_path, "--layout", "idx"], check=True)
    train, test = MNIST(str(tmp_path), download=False).load()
    assert torch.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert pixels(test).shape == (10_000, 1, 28, 28)


PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GIF": ("a.gif", {}),
    "AVIF": ("a.avif", {"quality": 100, "subsampling": "4:4:4"}),
    "JPEG": ("a.jfif", {"quality": 100, "subsampling": 0}),
    "JPEG2000": ("a.jp2", {}),
    "PNG": ("without a suffix", {}),
    "TIFF": ("photo.2024", {}),
    "GIF named as another": ("a.png", {}),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_read_by_their_content(kind: str, folder: Path) -> None:
    name, options = PICTURES[kind]
    (folder / "train/cat/0.png").unlink()
    Image.new("RGB", (9, 9), (200, 10, 10)).save(folder / "train/cat" / name, format=kind.split()[0], **options)
    source = ImageFolder(str(folder), image_size=8)
    images = pixels(source.load()[0])
    read = images[sorted(source.files()).index(f"train/cat/{name}")]
    assert len(images) == 6
    assert read[:, 4, 4].tolist() == pytest.approx([200, 10, 10], abs=3)


def test_files_of_other_kinds_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = pixels(ImageFolder(str(folder), image_size=8).load()[0])
    for name in ("boxes.txt", "more.TXT", "sheet.svg", "notes", "set.npy"):
        (folder / "train/cat" / name).write_text("no picture")
    (folder / "val/dog/page.pdf").write_bytes(b"%PDF-1.4")
    with caplog.at_level("INFO"):
        source = ImageFolder(str(folder), image_size=8)
        assert torch.equal(pixels(source.load()[0]), before)
        source.files()
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: 6 files are left out, which are no pictures: 2 .txt, 1 ")
    assert all(kind in line for kind in ("1 .svg", "1 without a suffix", "1 .npy", "1 .pdf"))


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".DS_Store"])
def test_hidden_folders_hold_no_data(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = ImageFolder(str(folder), image_size=8).files()
    for place in ("train", "train/cat", "val/dog", "val/dog/inner"):
        write_pictures(folder / place / name, 3)
    source = ImageFolder(str(folder), image_size=8)
    assert source.classes == ("cat", "dog")
    assert source.files() == before
    assert not caplog.messages


def test_a_broken_picture_of_any_suffix_is_refused(folder: Path) -> None:
    (folder / "train/cat/0.gif").write_bytes(b"GIF89a and no more")
    with pytest.raises(DataError, match=r"cat/0\.gif cannot be read as an image"):
        pixels(ImageFolder(str(folder), image_size=8).load()[0])


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.webp", "a.png"])
def test_of_several_pages_or_frames_the_first_is_read_and_a_line_says_so(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Image.new("RGB", (9, 9), (0, grey, 0)) for grey in (250, 0))
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    first.save(folder / "train/cat" / name, save_all=True, append_images=[second], **options)
    caplog.set_level("INFO")
    source = ImageFolder(str(folder), image_size=8)
    images = pixels(source.load()[0])
    assert images[sorted(source.files()).index(f"train/cat/{name}"), :, 4, 4].tolist() == [0, 250, 0]
    assert caplog.messages == [
        f"1 pictures have further pages or frames, which are not read: {folder}/train/cat/{name}"
    ]


def test_grey_pictures_are_three_equal_channels_or_one(folder: Path) -> None:
    colour, grey = (pixels(ImageFolder(str(folder), 8, channels=count).load()[0]) for count in (None, 1))
    assert (colour.shape, grey.shape) == ((6, 3, 8, 8), (6, 1, 8, 8))
    assert colour[1].unique().tolist() == grey[1].unique().tolist() == [40]
    assert grey[0, 0, 4, 4] == round(0.299 * 200 + 0.587 * 10 + 0.114 * 10)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        ImageFolder(str(folder), 8, channels=4)


def test_every_grey_level_stays_what_it_is(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, levels in (("dark", np.arange(256)), ("light", np.arange(256)[::-1])):
            (tmp_path / split / name).mkdir(parents=True)
            picture = Image.fromarray(levels.astype(np.uint8).reshape(16, 16))
            picture.save(tmp_path / split / name / "0.png")
            picture.convert("RGB").save(tmp_path / split / name / "1.png")
    images = pixels(ImageFolder(str(tmp_path), 16, channels=1).load()[0])
    assert images[:2].flatten(1).tolist() == [list(range(256))] * 2


def test_arrays_that_are_not_read_are_named(npz: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Npz(str(npz))
    assert caplog.messages == [f"{npz}: val_images not read; validation images come from the training images."]
