"""Sets that torchvision fetches and checks."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision

from mim4dd_pl.basics.errors import DataError, first_line
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.normalization import chunk_length
from mim4dd_pl.data.pictures import check_image_size, square
from mim4dd_pl.data.sources import Source, Split


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

    @property
    @abstractmethod
    def dataset(self) -> Callable[..., Any]:
        """Torchvision's class; its objects have ``data`` and ``targets`` or ``labels``."""

    def open(self, train: bool) -> Any:
        """Torchvision's data set of one split."""
        return self.dataset(self.root, train=train, download=self.download)

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
                f"No {type(self).__name__} in {self.root} ({first_line(error)}). Fetch it where there is a "
                f"network (download), or name the folder that holds {self.stored[0]} (root)."
            ) from error

    def _split(self, train: bool) -> Split:
        data = self._open(train)
        labels = data.labels if hasattr(data, "labels") else data.targets
        images = torch.as_tensor(data.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        chunks = (square(chunk, self.image_shape[1]) for chunk in images.split(chunk_length(images)))
        return Split(torch.as_tensor(labels).long(), chunks)


def _idx(kind: Any) -> tuple[str, ...]:
    """The four files of MNIST and its kin, unpacked."""
    return tuple(f"{kind.__name__}/raw/{name.removesuffix('.gz')}" for name, _ in kind.resources)


def _batches(kind: Any) -> tuple[str, ...]:
    """The files of a CIFAR."""
    names = [name for name, _ in kind.train_list + kind.test_list]
    return tuple(f"{kind.base_folder}/{name}" for name in (*names, kind.meta["filename"]))


class MNIST(Torchvision):
    """Handwritten digits, 60,000 + 10,000 of 28x28 (LeCun et al. 1998)."""

    name = "mnist"
    dataset = torchvision.datasets.MNIST
    published = (1, 28, 28)
    classes = tuple("0123456789")
    stored = _idx(dataset)


class FashionMNIST(Torchvision):
    """Articles of clothing, 60,000 + 10,000 of 28x28 (Xiao et al. 2017, arXiv:1708.07747)."""

    name = "fashion_mnist"
    dataset = torchvision.datasets.FashionMNIST
    published = (1, 28, 28)
    classes = tuple(dataset.classes)
    stored = _idx(dataset)


class KMNIST(Torchvision):
    """Cursive Japanese characters, 60,000 + 10,000 of 28x28 (Clanuwat et al. 2018, arXiv:1812.01718)."""

    name = "kmnist"
    dataset = torchvision.datasets.KMNIST
    published = (1, 28, 28)
    classes = tuple(dataset.classes)
    stored = _idx(dataset)


class SVHN(Torchvision):
    """House numbers, 73,257 + 26,032 of 32x32 in colour (Netzer et al. 2011)."""

    name = "svhn"
    dataset = torchvision.datasets.SVHN
    published = (3, 32, 32)
    classes = tuple("0123456789")
    stored = ("train_32x32.mat", "test_32x32.mat")

    def open(self, train: bool) -> Any:
        return self.dataset(self.root, split="train" if train else "test", download=self.download)


class CIFAR10(Torchvision):
    """Small photographs of ten classes, 50,000 + 10,000 of 32x32 (Krizhevsky 2009)."""

    name = "cifar10"
    dataset = torchvision.datasets.CIFAR10
    published = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    stored = _batches(dataset)


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
    dataset = torchvision.datasets.CIFAR100
    published = (3, 32, 32)
    classes = tuple(_CIFAR100.split())
    stored = _batches(dataset)
