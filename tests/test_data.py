"""Sources deliver what they promise, or say what is wrong; the data module splits and normalises."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mim4dd_pl.data import MNIST, Digits, ImageDataModule, ImageFolder, Npz, Source
from mim4dd_pl.data.catalog import Pixels
from mim4dd_pl.data.sets import statistics, stratified_split
from mim4dd_pl.errors import DataError
from mim4dd_pl.randomness import Stream
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits())
    data.setup()
    return data


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Twelve training and six test images of 5x5 RGB pixels, two classes, labels of shape (N, 1) as MedMNIST's."""
    rng = np.random.default_rng(0)
    path = tmp_path / "set.npz"
    np.savez(
        path,
        train_images=rng.integers(0, 256, (12, 5, 5, 3), dtype=np.uint8),
        train_labels=np.arange(12)[:, None] % 2,
        test_images=rng.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8),
        test_labels=np.arange(6)[:, None] % 2,
    )
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


def test_digits_are_split_as_documented(digits: ImageDataModule) -> None:
    assert len(digits.train) + len(digits.validation) == 1437
    assert len(digits.test) == 360
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255


def test_splits_are_disjoint_and_stratified(digits: ImageDataModule) -> None:
    labels = torch.cat([digits.train.labels, digits.validation.labels])
    share = torch.bincount(digits.validation.labels) / torch.bincount(labels)
    assert float((share - 0.1).abs().max()) < 0.01
    kept, held = stratified_split(labels, 144, seed=0)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(1437))


def test_training_images_are_normalised_by_their_own_statistics(digits: ImageDataModule) -> None:
    x = digits.train.batch(torch.arange(len(digits.train))).images
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(1), atol=1e-4, rtol=0)


def test_statistics_equal_the_moments_of_the_pixels() -> None:
    images = torch.randint(0, 256, (20, 3, 5, 5), dtype=torch.uint8)
    mean, std = statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)


def test_a_constant_channel_normalises_to_zero() -> None:
    mean, std = statistics(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    assert float((7 / 255 - mean) / std) == pytest.approx(0, abs=1e-4)


def test_batches_cover_a_split_in_order(digits: ImageDataModule) -> None:
    labels = torch.cat([batch.labels for batch in digits.test_dataloader()])
    assert torch.equal(labels, digits.test.labels)
    assert len(digits.val_dataloader()) == 1


def test_per_class_draws_distinct_images_class_by_class(digits: ImageDataModule, stream: Stream) -> None:
    chosen = digits.train.per_class(3, stream.generator())
    assert torch.equal(digits.train.labels[chosen], torch.arange(10).repeat_interleave(3))
    assert len(chosen.unique()) == 30


def test_more_images_per_class_than_there_are_is_refused(digits: ImageDataModule, stream: Stream) -> None:
    with pytest.raises(DataError, match="10000 real images per class are asked for, class 0 has 128"):
        digits.train.per_class(10_000, stream.generator())


def test_max_train_images_keeps_a_stratified_part() -> None:
    data = ImageDataModule(Digits(), max_train_images=100)
    data.setup()
    assert torch.bincount(data.train.labels).tolist() == [10] * 10
    assert len(data.validation) == 144


def test_fingerprint_sees_one_changed_pixel_and_one_changed_label(digits: ImageDataModule) -> None:
    train = digits.train
    images, labels = train.images.clone(), train.labels.clone()
    images[0, 0, 0, 0] += 1
    labels[0] = (labels[0] + 1) % 10
    prints = {
        replace(train, images=i, labels=y).fingerprint() for i in (train.images, images) for y in (train.labels, labels)
    }
    assert len(prints) == 4


def test_npz_knows_its_shape_and_loads(npz: Path) -> None:
    source = Npz(str(npz))
    assert (source.name, source.image_shape, source.classes) == ("set", (3, 5, 5), ("0", "1"))
    train, test = source.load()
    stored = np.load(npz)["train_images"]
    assert torch.equal(train.images, torch.from_numpy(stored).permute(0, 3, 1, 2))
    assert test.labels.tolist() == [0, 1] * 3


def test_npz_with_the_names_of_keras_and_grey_images(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 6, 6), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "k.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = Npz(str(tmp_path / "k.npz"), image_size=4)
    assert source.image_shape == (1, 4, 4)
    assert source.load()[0].images.shape == (4, 1, 4, 4)


def test_npz_with_pickles_is_refused_without_loading_them(tmp_path: Path) -> None:
    objects = np.array([{}, {}], dtype=object)
    np.savez(tmp_path / "p.npz", train_images=objects, train_labels=objects, test_images=objects, test_labels=objects)
    with pytest.raises(DataError, match=r"train_labels of .*p\.npz cannot be read"):
        Npz(str(tmp_path / "p.npz"))


def test_image_folder_converts_resizes_and_cuts(folder: Path) -> None:
    source = ImageFolder(str(folder), image_size=8)
    train, test = source.load()
    assert (source.name, source.classes) == ("pets", ("cat", "dog"))
    assert train.images.shape == test.images.shape == (6, 3, 8, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[1].unique().tolist() == [40]  # the grey cat
    assert train.images[0][:, 4, 4].tolist() == [200, 10, 10]


def test_image_folder_names_a_broken_picture(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read as an image"):
        ImageFolder(str(folder), image_size=8).load()


def test_image_folder_names_a_class_that_is_missing_from_the_test(folder: Path) -> None:
    for picture in (folder / "val" / "dog").iterdir():
        picture.unlink()
    (folder / "val" / "dog").rmdir()
    with pytest.raises(DataError, match="differ in the classes dog"):
        ImageFolder(str(folder), image_size=8).load()


def test_missing_mnist_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No MNIST in .* Set data\.source\.download"):
        MNIST(str(tmp_path), download=False).load()


class Wrong(Source):
    """Promises one shape and two classes."""

    name, image_shape, classes = "wrong", (1, 4, 4), ("a", "b")

    def __init__(self, side: int, labels: list[int]) -> None:
        images = torch.zeros(len(labels), 1, side, side, dtype=torch.uint8)
        self.pixels = Pixels(images, torch.tensor(labels))

    def load(self) -> tuple[Pixels, Pixels]:
        return self.pixels, self.pixels


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Wrong(5, [0, 1] * 10), r"training images have shape \(1, 5, 5\), expected \(1, 4, 4\)"),
        (Wrong(4, [0, 2] * 10), r"training labels lie in 0\.\.2, expected 0\.\.1"),
        (Wrong(4, [0, -1] * 10), r"training labels lie in -1\.\.0, expected 0\.\.1"),
        (Wrong(4, [0] * 10 + [1]), "class b has 1 training images, at least 2 are needed"),
    ],
)
def test_data_that_break_their_promise_are_refused(source: Source, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataModule(source).setup()


@pytest.mark.skipif(not (ROOT.parent / "shared/data/mnist.npz").exists(), reason="needs ../shared/data/mnist.npz")
def test_real_mnist_has_the_published_statistics() -> None:
    with np.load(ROOT.parent / "shared/data/mnist.npz") as file:
        key = next(key for key in file if file[key].ndim == 3 and len(file[key]) == 60_000)
        mean, std = statistics(torch.from_numpy(file[key])[:, None])
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)
    assert float(std) == pytest.approx(0.3081, abs=5e-5)
