"""Where images come from: what a source promises, and the sets that other libraries read.

A source knows shape and classes when it is built, labels when it is loaded, and decodes pixels in chunks when these are
asked for, so that no set need fit in memory. It writes nothing but downloads; :mod:`mim4dd_pl.data.cache` keeps what
it decodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mim4dd_pl.data.sets import stratified_split
from mim4dd_pl.errors import DataError
from mim4dd_pl.normalization import chunk_length
from mim4dd_pl.shapes import ImageShape


class Split(NamedTuple):
    """One split as a source delivers it: labels (N,) int64, and its images in order as chunks (n, c, h, w) of uint8."""

    labels: Tensor
    chunks: Iterable[Tensor]


class Source(ABC):
    """Where images come from. Shape and classes are known before anything is decoded."""

    name: str
    image_shape: ImageShape
    classes: tuple[str, ...]

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Training and test images; pixels are decoded when the chunks are read, once.

        Raises:
            DataError: If they are missing or not what they should be; reading the chunks may raise it too.
        """

    def files(self) -> Mapping[str, Path]:
        """What is decoded: paths by their names within the set. None for a set that costs nothing to decode.

        Decoded images are found again by name, shape, classes and these files: what else decides them must be part of
        the name.

        Raises:
            DataError: If they are missing.
        """
        return {}


class Digits(Source):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships: 1,437 for training, 360 for the test.

    Args:
        num_classes: Keep the digits below this number, 2 to 10.
    """

    image_shape = (1, 8, 8)

    def __init__(self, num_classes: int = 10) -> None:
        if not 2 <= num_classes <= 10:
            raise ValueError(f"data.source.num_classes must lie in 2..10, got {num_classes}.")
        self.name = "digits" if num_classes == 10 else f"digits 0 to {num_classes - 1}"
        self.classes = tuple("0123456789"[:num_classes])

    def load(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits  # slow to import, and needed here only

        data = load_digits()
        # 17 levels of grey, 0..16.
        images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
        labels = torch.from_numpy(data.target.astype(np.int64))
        train, test = (rows[labels[rows] < len(self.classes)] for rows in stratified_split(labels, 360, seed=0))
        return Split(labels[train], [images[train]]), Split(labels[test], [images[test]])


class Torchvision(Source):
    """A set that torchvision fetches and checks.

    Args:
        root: Folder that holds torchvision's files.
        download: Fetch them there if they are missing.
        image_size: Side in pixels to resize to; as published by default.
    """

    published: ClassVar[ImageShape]
    stored: ClassVar[tuple[str, ...]]
    """Torchvision's files below ``root``."""

    def __init__(self, root: str = "data", download: bool = True, image_size: int | None = None) -> None:
        check_image_size(image_size)
        self.root = Path(root)
        self.download = download
        side = image_size or self.published[1]
        self.image_shape = (self.published[0], side, side)

    @abstractmethod
    def open(self, train: bool) -> Any:
        """Torchvision's data set of one split, which has ``data`` and ``targets`` or ``labels``."""

    def load(self) -> tuple[Split, Split]:
        return self._split(train=True), self._split(train=False)

    def files(self) -> Mapping[str, Path]:
        paths = {name: self.root / name for name in self.stored}
        if not all(path.exists() for path in paths.values()):
            for train in (True, False):
                self._open(train)
        return {name: path for name, path in paths.items() if path.exists()}

    def _open(self, train: bool) -> Any:
        try:
            return self.open(train)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"No {type(self).__name__} in {self.root} ({first_line(error)}). Set data.source.download to true "
                f"where there is a network, or data.source.root to the folder that holds {self.stored[0]}."
            ) from error

    def _split(self, train: bool) -> Split:
        data = self._open(train)
        labels = data.labels if hasattr(data, "labels") else data.targets
        images = torch.as_tensor(data.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        return Split(torch.as_tensor(labels).long(), self._chunks(images))

    def _chunks(self, images: Tensor) -> Iterator[Tensor]:
        for chunk in images.split(chunk_length(images)):
            yield square(chunk, self.image_shape[1])


def _idx(folder: str) -> tuple[str, ...]:
    """The four files of MNIST and its kin."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{name}-ubyte" for name in names)


class MNIST(Torchvision):
    """Handwritten digits, 60,000 + 10,000 of 28x28 (LeCun et al. 1998)."""

    name = "mnist"
    published = (1, 28, 28)
    classes = tuple("0123456789")
    stored = _idx("MNIST")

    def open(self, train: bool) -> Any:
        return torchvision.datasets.MNIST(self.root, train=train, download=self.download)


class FashionMNIST(Torchvision):
    """Articles of clothing, 60,000 + 10,000 of 28x28 (Xiao et al. 2017, arXiv:1708.07747)."""

    name = "fashion_mnist"
    published = (1, 28, 28)
    classes = tuple(torchvision.datasets.FashionMNIST.classes)
    stored = _idx("FashionMNIST")

    def open(self, train: bool) -> Any:
        return torchvision.datasets.FashionMNIST(self.root, train=train, download=self.download)


class KMNIST(Torchvision):
    """Cursive Japanese characters, 60,000 + 10,000 of 28x28 (Clanuwat et al. 2018, arXiv:1812.01718)."""

    name = "kmnist"
    published = (1, 28, 28)
    classes = tuple(torchvision.datasets.KMNIST.classes)
    stored = _idx("KMNIST")

    def open(self, train: bool) -> Any:
        return torchvision.datasets.KMNIST(self.root, train=train, download=self.download)


class SVHN(Torchvision):
    """House numbers, 73,257 + 26,032 of 32x32 in colour (Netzer et al. 2011)."""

    name = "svhn"
    published = (3, 32, 32)
    classes = tuple("0123456789")
    stored = ("train_32x32.mat", "test_32x32.mat")

    def open(self, train: bool) -> Any:
        return torchvision.datasets.SVHN(self.root, split="train" if train else "test", download=self.download)


class CIFAR10(Torchvision):
    """Small photographs of ten classes, 50,000 + 10,000 of 32x32 (Krizhevsky 2009)."""

    name = "cifar10"
    published = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    stored = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    )

    def open(self, train: bool) -> Any:
        return torchvision.datasets.CIFAR10(self.root, train=train, download=self.download)


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


class CIFAR100(Torchvision):
    """Small photographs of a hundred classes, 50,000 + 10,000 of 32x32 (Krizhevsky 2009)."""

    name = "cifar100"
    published = (3, 32, 32)
    classes = tuple(_CIFAR100.split())
    stored = tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))

    def open(self, train: bool) -> Any:
        return torchvision.datasets.CIFAR100(self.root, train=train, download=self.download)


def check_image_size(image_size: int | None) -> None:
    """Refuse sides that no network here can take."""
    if image_size is not None and not 4 <= image_size <= 1024:
        raise ValueError(f"data.source.image_size must lie in 4..1024 pixels, got {image_size}.")


def square(images: Tensor, side: int) -> Tensor:
    """uint8 images (..., c, h, w), resized so that the shorter side fits and cut to the centre square."""
    if min(images.shape[-2:]) != side:
        images = transforms.resize(images, [side], antialias=True)
    cut: Tensor = transforms.center_crop(images, [side, side])
    return cut


_MOST_PIXELS = 2**26  # 8192x8192; the largest picture of ImageNet is a little smaller
_MOST_OBLONG = 64


def check_dimensions(name: str, width: int, height: int) -> None:
    """Refuse a picture by its header: decoded or resized it would fill the memory.

    Raises:
        DataError: If it has more than 67 million pixels, or one side is more than 64 times the other.
    """
    if width * height > _MOST_PIXELS or max(width, height) > _MOST_OBLONG * min(width, height):
        raise DataError(
            f"{name} has {width:,}x{height:,} pixels, expected at most {_MOST_PIXELS:,} and no side more than "
            f"{_MOST_OBLONG} times the other: remove it or cut it."
        )


def first_line(error: BaseException) -> str:
    """What an error says, without what it adds."""
    return str(error).strip().split("\n")[0]
