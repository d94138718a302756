"""A ``.npz`` file as a source, read as a stream: one with more pixels than memory will do."""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.data.normalization import chunk_length
from mim4dd_pl.data.pictures import check_dimensions, check_image_size, square
from mim4dd_pl.data.sources import Source, Split, first_line

_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise at a file that is not what it says, or is encrypted."""

_MOST_COMPRESSED = 100
"""Bytes of images out of a byte of the file: pictures of digits reach ten, zeros to fill a memory a thousand."""

_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
_KERAS = ("x_train", "y_train", "x_test", "y_test")


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: "np.dtype[np.generic]"


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
        check_image_size(image_size)
        self.path = Path(path)
        self.name = self.path.stem
        # Labels are small: reading them and the images' headers tells shape and classes without decoding images.
        with self._open() as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            self._keys = _MEDMNIST if _MEDMNIST[0] in found else _KERAS
            missing = [key for key in self._keys if key not in found]
            if missing:
                raise DataError(
                    f"{self.path} lacks {', '.join(missing)}: expected {', '.join(_MEDMNIST)}, or "
                    f"{', '.join(_KERAS)}; it has {', '.join(sorted(found))[:200] or 'nothing'}."
                )
            train, test = (self._images_header(archive, key) for key in self._keys[::2])
            self._labels = [
                self._read_labels(archive, key, images.shape[0])
                for key, images in zip(self._keys[1::2], (train, test), strict=True)
            ]
        labels = self._labels[0]
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(labels):
            raise DataError(
                f"{self._keys[1]} of {self.path} lie in {int(labels.min())}..{int(labels.max())}, expected 0..C-1 with "
                f"fewer classes than its {len(labels)} images."
            )
        if train.shape[1:] != test.shape[1:]:
            raise DataError(
                f"{self.path} holds training images of {train.shape[1:]} and test images of {test.shape[1:]}, "
                "expected one shape."
            )
        height, width, channels = (*train.shape[1:], 1)[:3]
        if channels not in (1, 3):
            raise DataError(f"{self.path} holds images of {channels} channels, expected 1 or 3.")
        if image_size is None and height != width:
            raise DataError(f"{self.path} holds images of {height}x{width}: set data.source.image_size.")
        side = image_size or height
        self.image_shape = (channels, side, side)
        self.classes = tuple(str(label) for label in range(int(labels.max()) + 1))

    def files(self) -> Mapping[str, Path]:
        return {self.path.name: self.path}

    def load(self) -> tuple[Split, Split]:
        train, test = (
            Split(labels, self._chunks(key)) for key, labels in zip(self._keys[::2], self._labels, strict=True)
        )
        return train, test

    def _chunks(self, key: str) -> Iterator[Tensor]:
        with self._open() as archive:
            shape, fortran_order, _ = self._images_header(archive, key)
            try:
                with archive.open(f"{key}.npy") as member:
                    _read_header(member)
                    arrays = _whole(member, shape) if fortran_order else _stream(member, shape)
                    for array in arrays:
                        pixels = torch.from_numpy(array)
                        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
                        yield square(pixels, self.image_shape[1])
            except _UNREADABLE as error:
                raise DataError(f"{key} of {self.path} cannot be read: {first_line(error)}") from error

    def _open(self) -> zipfile.ZipFile:
        if not os.path.isfile(self.path):  # a pipe would block for ever
            raise DataError(f"No such file: {self.path} (data.source.path).")
        try:
            return zipfile.ZipFile(self.path)
        except _UNREADABLE as error:
            raise DataError(f"{self.path} is no readable .npz file: {first_line(error)}") from error

    def _read_labels(self, archive: zipfile.ZipFile, key: str, images: int) -> Tensor:
        header = self._header(archive, key)
        flat = header.shape in ((count := max(header.shape, default=0),), (count, 1))
        if header.dtype.kind not in "iu" or count == 0 or not flat:
            raise DataError(
                f"{key} of {self.path} must be integers of shape (N,) or (N, 1), got {header.dtype} of shape "
                f"{header.shape}."
            )
        if count != images:  # so that they take no more memory than the images
            raise DataError(f"{self.name} has {images} images and {count} labels in a split, expected as many.")
        try:
            with archive.open(f"{key}.npy") as member:
                labels = np.lib.format.read_array(member, allow_pickle=False)
        except _UNREADABLE as error:
            raise DataError(f"{key} of {self.path} cannot be read: {first_line(error)}") from error
        return torch.from_numpy(labels.astype(np.int64).reshape(-1))

    def _images_header(self, archive: zipfile.ZipFile, key: str) -> _Header:
        header = self._header(archive, key)
        if header.dtype != np.uint8 or len(header.shape) not in (3, 4) or min(header.shape) < 1:
            raise DataError(
                f"{key} of {self.path} must be uint8 of shape (N, h, w) or (N, h, w, c), got {header.dtype} of shape "
                f"{header.shape}."
            )
        check_dimensions(f"{key} of {self.path}", header.shape[2], header.shape[1])
        stored = archive.getinfo(f"{key}.npy").compress_size
        if math.prod(header.shape) > _MOST_COMPRESSED * stored:
            raise DataError(
                f"{key} of {self.path} claims {math.prod(header.shape):,} bytes of images in {stored:,} bytes of the "
                f"file, expected at most {_MOST_COMPRESSED} times as many."
            )
        return header

    def _header(self, archive: zipfile.ZipFile, key: str) -> _Header:
        """What an array says of itself, if the file has as many bytes for it."""
        try:
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"it is compressed by method {info.compress_type}, expected numpy's (0 or 8)")
            with archive.open(info) as member:
                header = _read_header(member)
                length = member.tell()
            expected = length + header.dtype.itemsize * math.prod(header.shape)
            if not header.dtype.hasobject and info.file_size != expected:
                raise ValueError(f"it has {info.file_size:,} bytes, its header tells of {expected:,}")
            if info.compress_size > self.path.stat().st_size:
                raise ValueError(f"it claims {info.compress_size:,} bytes, the whole file has fewer")
        except _UNREADABLE as error:
            raise DataError(f"{key} of {self.path} cannot be read: {first_line(error)}") from error
        return header


def _read_header(member: IO[bytes]) -> _Header:
    if (version := np.lib.format.read_magic(member)) != (1, 0):  # others are for headers of more than 64 KiB
        raise ValueError(f"it is of npy version {version}, expected (1, 0)")
    return _Header(*np.lib.format.read_array_header_1_0(member))


def _stream(member: IO[bytes], shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    length = chunk_length(torch.empty(1, *shape[1:], device="meta"))
    image = int(np.prod(shape[1:]))
    for start in range(0, shape[0], length):
        count = min(length, shape[0] - start)
        data = bytearray(member.read(count * image))
        yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])


def _whole(member: IO[bytes], shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Columns first, an image lies scattered over the file."""
    yield np.frombuffer(bytearray(member.read()), np.uint8).reshape(shape, order="F")
