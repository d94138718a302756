"""A ``.npz`` file as a source, read as a stream: one with more pixels than memory will do."""

import logging
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError, first_line
from mim4dd_pl.basics.machine import check_memory
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.normalization import chunk_length
from mim4dd_pl.data.pictures import check_dimensions, check_image_size, square
from mim4dd_pl.data.sources import Source, Split

_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise at a file that is not what it says, or is encrypted."""

_MOST_UNPACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""Bytes that a byte of the file can hold, by the methods that numpy writes (zlib's technical details: 1032:1)."""

_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
_KERAS = ("x_train", "y_train", "x_test", "y_test")


_log = logging.getLogger(__name__)


class _Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: "np.dtype[np.generic]"

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


class Npz(Source):
    """A ``.npz`` file with ``train_images, train_labels, test_images, test_labels`` (MedMNIST's names) or
    ``x_train, y_train, x_test, y_test`` (Keras's).

    Images are uint8 of shape (N, h, w) or (N, h, w, c), labels integers of shape (N,) or (N, 1) counting from 0. Other
    arrays, MedMNIST's ``val_images`` among them, are not read; a line names them.

    Args:
        path: The file.
        image_size: Side in pixels of the result, cut to the centre square; as stored by default, then square already.
    """

    name = "npz"

    def __init__(self, path: str, image_size: int | None = None) -> None:
        check_image_size(image_size)
        self.path = Path(path)
        self.name = self.path.stem
        # Labels are small: reading them and the images' headers tells shape and classes without decoding images.
        with self._open() as archive:
            self._keys = self._names(archive)
            train, test = (self._images(archive, key).shape[1:] for key in self._keys[::2])
            self._labels = [self._read_labels(archive, key) for key in self._keys[1::2]]
        self.classes = tuple(str(label) for label in range(self._count_classes()))
        self.image_shape = self._image_shape(train, test, image_size)

    def files(self) -> Mapping[str, Path]:
        return {self.path.name: self.path}

    def load(self) -> tuple[Split, Split]:
        train, test = (
            Split(labels, self._chunks(key)) for key, labels in zip(self._keys[::2], self._labels, strict=True)
        )
        return train, test

    def _chunks(self, key: str) -> Iterator[Tensor]:
        with self._open() as archive, self._reading(key):
            for array in _arrays(archive, key, self._images(archive, key)):
                pixels = torch.from_numpy(array)
                pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
                yield square(pixels, self.image_shape[1])

    def _open(self) -> zipfile.ZipFile:
        if not os.path.isfile(self.path):  # a pipe would block for ever
            raise DataError(f"No such file: {self.path} (path).")
        try:
            return zipfile.ZipFile(self.path)
        except _UNREADABLE as error:
            raise DataError(f"{self.path} is no readable .npz file: {first_line(error)}") from error

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            raise DataError(f"{key} of {self.path} cannot be read: {first_line(error)}") from error

    def _names(self, archive: zipfile.ZipFile) -> tuple[str, ...]:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
        keys = _MEDMNIST if _MEDMNIST[0] in found else _KERAS
        if missing := [key for key in keys if key not in found]:
            raise DataError(
                f"{self.path} lacks {', '.join(missing)}: expected {', '.join(_MEDMNIST)}, or {', '.join(_KERAS)}; "
                f"it has {', '.join(sorted(found))[:200] or 'nothing'}."
            )
        if unread := sorted(set(found).difference(keys)):
            held_out = "; validation images come from the training images" if "val_images" in unread else ""
            _log.info("%s: %.200s not read%s.", self.path, ", ".join(unread), held_out)
        return keys

    def _images(self, archive: zipfile.ZipFile, key: str) -> _Header:
        header = self._header(archive, key)
        if header.dtype != np.uint8 or len(header.shape) not in (3, 4) or min(header.shape) < 1:
            raise DataError(f"{key} of {self.path} must be uint8 of shape (N, h, w) or (N, h, w, c), got {header}.")
        check_dimensions(f"{key} of {self.path}", header.shape[2], header.shape[1])
        return header

    def _read_labels(self, archive: zipfile.ZipFile, key: str) -> Tensor:
        header = self._header(archive, key)
        count = max(header.shape, default=0)
        if header.dtype.kind not in "iu" or count == 0 or header.shape not in ((count,), (count, 1)):
            raise DataError(f"{key} of {self.path} must be integers of shape (N,) or (N, 1), got {header}.")
        with self._reading(key):
            return torch.from_numpy(_whole(archive, key, header).astype(np.int64).reshape(-1))

    def _header(self, archive: zipfile.ZipFile, key: str) -> _Header:
        """Of an array for which the file has as many bytes as it needs; of these alone zipfile reads on."""
        with self._reading(key):
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type not in _MOST_UNPACKED:
                raise ValueError(f"it is compressed by method {info.compress_type}, expected numpy's (0 or 8)")
            with archive.open(info) as member:
                header, length = _read_header(member), member.tell()
            if not header.dtype.hasobject and info.file_size != length + header.size:
                raise ValueError(f"it has {info.file_size:,} bytes, its header tells of {length + header.size:,}")
            held = min(info.compress_size, self.path.stat().st_size)
            if info.file_size > _MOST_UNPACKED[info.compress_type] * held:
                raise ValueError(f"it claims {info.file_size:,} bytes in {held:,} of the file, which cannot hold them")
        return header

    def _count_classes(self) -> int:
        labels = self._labels[0]
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(labels):
            raise DataError(
                f"{self._keys[1]} of {self.path} lie in {int(labels.min())}..{int(labels.max())}, expected 0..C-1 with "
                f"fewer classes than its {len(labels)} images."
            )
        return int(labels.max()) + 1

    def _image_shape(self, train: tuple[int, ...], test: tuple[int, ...], image_size: int | None) -> ImageShape:
        if train != test:
            raise DataError(f"{self.path} holds training images of {train}, test images of {test}, expected one shape.")
        height, width, channels = (*train, 1)[:3]
        if channels not in (1, 3):
            raise DataError(f"{self.path} holds images of {channels} channels, expected 1 or 3.")
        if image_size is None and height != width:
            raise DataError(f"{self.path} holds images of {height}x{width}: set image_size.")
        side = image_size or height
        return channels, side, side


def _read_header(member: IO[bytes]) -> _Header:
    if (version := np.lib.format.read_magic(member)) != (1, 0):  # others are for headers of more than 64 KiB
        raise ValueError(f"it is of npy version {version}, expected (1, 0)")
    return _Header(*np.lib.format.read_array_header_1_0(member))


def _arrays(archive: zipfile.ZipFile, key: str, header: _Header) -> Iterator[npt.NDArray[np.generic]]:
    """Images chunk by chunk; all at once where columns come first: then each lies scattered over the file."""
    if header.fortran_order:
        yield _whole(archive, key, header)
        return
    shape = header.shape[1:]
    length = chunk_length(torch.empty(1, *shape, device="meta")) * math.prod(shape)
    with archive.open(f"{key}.npy") as member:
        _read_header(member)
        while data := bytearray(member.read(length)):
            yield np.frombuffer(data, np.uint8).reshape(-1, *shape)


def _whole(archive: zipfile.ZipFile, key: str, header: _Header) -> npt.NDArray[np.generic]:
    check_memory(key, header.size, "save fewer images, in C order")
    with archive.open(f"{key}.npy") as member:
        array: npt.NDArray[np.generic] = np.lib.format.read_array(member, allow_pickle=False)
    return array
