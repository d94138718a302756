"""Where images come from: data sets decoded once to uint8."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms.v2 import functional as transforms

from mim4dd_pl.data.sets import stratified_split
from mim4dd_pl.errors import DataError
from mim4dd_pl.shapes import ImageShape

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise at a file that is not what it says."""


class Pixels(NamedTuple):
    """One split as a source delivers it: images (N, c, h, w) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Source(ABC):
    """Where images come from. Shape and classes are known before anything is decoded."""

    name: str
    image_shape: ImageShape
    classes: tuple[str, ...]

    @abstractmethod
    def load(self) -> tuple[Pixels, Pixels]:
        """Training and test images.

        Raises:
            DataError: If they are missing or not what they should be.
        """


class Digits(Source):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships: 1,437 for training, 360 for the test."""

    name = "digits"
    image_shape = (1, 8, 8)
    classes = tuple("0123456789")

    def load(self) -> tuple[Pixels, Pixels]:
        from sklearn.datasets import load_digits  # slow to import, and needed here only

        data = load_digits()
        # 17 levels of grey, 0..16.
        images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
        labels = torch.from_numpy(data.target.astype(np.int64))
        train, test = stratified_split(labels, 360, seed=0)
        return Pixels(images[train], labels[train]), Pixels(images[test], labels[test])


class MNIST(Source):
    """MNIST (LeCun et al. 1998) as torchvision stores it.

    Args:
        root: Folder that holds ``MNIST/raw``.
        download: Fetch the files there if they are missing.
        image_size: Side in pixels to resize to; 28 by default.
    """

    name = "mnist"
    classes = tuple("0123456789")

    def __init__(self, root: str = "data", download: bool = True, image_size: int = 28) -> None:
        _check_image_size(image_size)
        self.root = root
        self.download = download
        self.image_shape = (1, image_size, image_size)

    def load(self) -> tuple[Pixels, Pixels]:
        splits = []
        for train in (True, False):
            try:
                data = torchvision.datasets.MNIST(self.root, train=train, download=self.download)
            except (RuntimeError, OSError, ValueError, AssertionError) as error:
                raise DataError(
                    f"No MNIST in {self.root} ({_first_line(error)}). Set data.source.download to true where there is "
                    "a network, or data.source.root to the folder that holds MNIST/raw."
                ) from error
            images = _square(data.data[:, None], self.image_shape[1])
            splits.append(Pixels(images, data.targets.long()))
        return splits[0], splits[1]


class Npz(Source):
    """A ``.npz`` file with ``train_images, train_labels, test_images, test_labels`` (MedMNIST's names) or
    ``x_train, y_train, x_test, y_test`` (Keras's).

    Images are uint8 of shape (N, h, w) or (N, h, w, c), labels integers of shape (N,) or (N, 1) counting from 0.

    Args:
        path: The file.
        image_size: Side in pixels of the result, cut to the centre square; as stored by default, then square already.
    """

    name = "npz"

    def __init__(self, path: str, image_size: int | None = None) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        # Labels are small: reading them and the images' headers tells shape and classes without decoding images.
        names = ("train_images", "train_labels", "test_images", "test_labels")
        with self._open() as file:
            self._keys = names if names[0] in file else ("x_train", "y_train", "x_test", "y_test")
            missing = [key for key in self._keys if key not in file]
            if missing:
                raise DataError(
                    f"{self.path} lacks {', '.join(missing)}: expected {', '.join(names)}, or x_train, y_train, "
                    f"x_test, y_test; it has {', '.join(sorted(file)) or 'nothing'}."
                )
            labels = self._labels(file, self._keys[1])
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(labels):
            raise DataError(
                f"{self._keys[1]} of {self.path} lie in {int(labels.min())}..{int(labels.max())}, expected 0..C-1 with "
                f"fewer classes than its {len(labels)} images."
            )
        shape = self._stored_shape()
        _check_image_size(image_size)
        if image_size is None and shape[1] != shape[2]:
            raise DataError(f"{self.path} holds images of {shape[1]}x{shape[2]}: set data.source.image_size.")
        side, channels = image_size or shape[1], shape[3] if len(shape) == 4 else 1
        if channels not in (1, 3):
            raise DataError(f"{self.path} holds images of {channels} channels, expected 1 or 3.")
        self.image_shape = (channels, side, side)
        self.classes = tuple(str(label) for label in range(int(labels.max()) + 1))

    def load(self) -> tuple[Pixels, Pixels]:
        splits = []
        with self._open() as file:
            for images_key, labels_key in (self._keys[:2], self._keys[2:]):
                images = self._array(file, images_key)
                if images.dtype != np.uint8 or images.ndim not in (3, 4):
                    raise DataError(
                        f"{images_key} of {self.path} must be uint8 of shape (N, h, w) or (N, h, w, c), got "
                        f"{images.dtype} of shape {images.shape}."
                    )
                pixels = torch.from_numpy(images)
                pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
                labels = self._labels(file, labels_key)
                if len(labels) != len(pixels):
                    raise DataError(f"{self.path} has {len(pixels)} {images_key} and {len(labels)} {labels_key}.")
                splits.append(Pixels(pixels, labels))
        train, test = splits
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{self.path} holds training images of {tuple(train.images.shape[1:])} and test images of "
                f"{tuple(test.images.shape[1:])}, expected one shape."
            )
        side = self.image_shape[1]
        return Pixels(_square(train.images, side), train.labels), Pixels(_square(test.images, side), test.labels)

    def _open(self) -> "np.lib.npyio.NpzFile":
        try:
            file = np.load(self.path, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"No such file: {self.path} (data.source.path).") from None
        except _UNREADABLE as error:
            raise DataError(f"{self.path} is no readable .npz file: {_first_line(error)}") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{self.path} is a single array, expected a .npz file.")
        return file

    def _array(self, file: "np.lib.npyio.NpzFile", key: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
        try:
            return np.asarray(file[key])
        except _UNREADABLE as error:
            raise DataError(f"{key} of {self.path} cannot be read: {_first_line(error)}") from error

    def _labels(self, file: "np.lib.npyio.NpzFile", key: str) -> Tensor:
        labels = self._array(file, key)
        if (
            labels.dtype.kind not in "iu"
            or labels.size == 0
            or labels.shape
            not in (
                (len(labels),),
                (len(labels), 1),
            )
        ):
            raise DataError(
                f"{key} of {self.path} must be integers of shape (N,) or (N, 1), got {labels.dtype} of shape "
                f"{labels.shape}."
            )
        return torch.from_numpy(labels.astype(np.int64).reshape(-1))

    def _stored_shape(self) -> tuple[int, ...]:
        key = self._keys[0]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape: tuple[int, ...] = read(member)[0]
        except _UNREADABLE as error:
            raise DataError(f"{key} of {self.path} cannot be read: {_first_line(error)}") from error
        if len(shape) not in (3, 4):
            raise DataError(f"{key} of {self.path} must have shape (N, h, w) or (N, h, w, c), got {shape}.")
        return shape


class ImageFolder(Source):
    """A tree ``root/train/<class>/<image>`` and ``root/test/<class>/<image>`` (or ``val`` for ``test``).

    Images become RGB, are resized so that the shorter side fits and cut to the centre square.

    Args:
        root: The folder; its name becomes the name of the data set.
        image_size: Side in pixels of the result.
    """

    def __init__(self, root: str, image_size: int) -> None:
        _check_image_size(image_size)
        self.root = Path(root)
        self.name = self.root.resolve().name
        self.image_shape = (3, image_size, image_size)
        train = self.root / "train"
        if not train.is_dir():
            raise DataError(f"No folder {train}: data.source.root needs train/<class>/ and test/<class>/ (or val/).")
        self.classes = _class_folders(train)
        held_out = [self.root / name for name in ("test", "val") if (self.root / name).is_dir()]
        if not held_out:
            raise DataError(f"{self.root} has neither test/ nor val/ beside train/: one must hold the test images.")
        self._folders = (train, held_out[0])

    def load(self) -> tuple[Pixels, Pixels]:
        train, test = (self._decode(folder) for folder in self._folders)
        return train, test

    def _decode(self, folder: Path) -> Pixels:
        if (classes := _class_folders(folder)) != self.classes:
            odd = sorted(set(classes) ^ set(self.classes))
            raise DataError(f"{folder} and {self._folders[0]} differ in the classes {', '.join(odd)}.")
        number = {name: label for label, name in enumerate(self.classes)}
        try:
            samples = make_dataset(str(folder), number, is_valid_file=_is_picture)
        except (FileNotFoundError, RuntimeError) as error:
            raise DataError(f"{folder}: {_first_line(error)}") from error
        side = self.image_shape[1]
        images = torch.empty(len(samples), 3, side, side, dtype=torch.uint8)
        for row, (path, _) in enumerate(samples):
            try:
                with Image.open(path) as picture:
                    if picture.mode[0] in "IF":
                        # Pillow would cut more than 8 bits to white.
                        raise DataError(f"{path} has pixels of mode {picture.mode}, expected 8 bits a channel.")
                    pixels = transforms.pil_to_tensor(picture.convert("RGB"))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise DataError(f"{path} cannot be read as an image: {_first_line(error)}") from error
            images[row] = _square(pixels, side)
        return Pixels(images, torch.tensor([label for _, label in samples], dtype=torch.int64))


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))


def _is_picture(path: str) -> bool:
    return path.lower().endswith(IMG_EXTENSIONS) and not Path(path).name.startswith(".")


def _check_image_size(image_size: int | None) -> None:
    if image_size is not None and not 4 <= image_size <= 1024:
        raise ValueError(f"data.source.image_size must lie in 4..1024 pixels, got {image_size}.")


def _square(images: Tensor, side: int) -> Tensor:
    """uint8 images (..., c, h, w), resized so that the shorter side fits and cut to the centre square."""
    if min(images.shape[-2:]) != side:
        images = transforms.resize(images, [side], antialias=True)
    square: Tensor = transforms.center_crop(images, [side, side])
    return square


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
