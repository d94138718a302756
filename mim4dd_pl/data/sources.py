"""Where images come from: what a source promises, and the sets that other libraries read.

A source knows shape and classes when it is built, labels when it is loaded, and decodes pixels in chunks when these are
asked for, so that no set need fit in memory. It writes nothing but downloads; :mod:`mim4dd_pl.data.cache` keeps what
it decodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.sets import stratified_split


class Split(NamedTuple):
    """One split as a source delivers it: labels (N,), and its images in order as chunks (n, c, h, w).

    Labels are integers from 0. Pixels are uint8, or other integers in 0..255; any other type is refused.
    """

    labels: Tensor
    chunks: Iterable[Tensor]


class Source(ABC):
    """Where images come from. Shape and classes are known before anything is decoded."""

    name: str
    image_shape: ImageShape
    classes: tuple[str, ...]
    rule: ClassVar[str] = ""
    """How files become pixels, in a few words, wherever that has changed: images of another rule are decoded anew."""

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Training and test images; pixels are decoded when the chunks are read, once.

        Raises:
            DataError: If they are missing or not what they should be; reading the chunks may raise it too.
        """

    def files(self) -> Mapping[str, Path]:
        """What is decoded: paths by their names within the set. None for a set that costs nothing to decode.

        Decoded images are found again by name, shape, classes, rule and these files: what else decides them must be
        part of the name.

        Raises:
            DataError: If they are missing.
        """
        return {}


def delivered(source: Source) -> tuple[Split, Split]:
    """What a source loads, held to its promise: labels int64; chunks uint8, as many and as large as they should be.

    Raises:
        DataError: If labels are no integers of shape (N,); or, when the chunks are read, if images have another shape
            than the source promises, pixels are no integers in 0..255, or there are not as many images as labels.
    """
    train, test = (Split(labels := _labels(source, split), _pixels(source, labels, split)) for split in source.load())
    return train, test


def _labels(source: Source, split: Split) -> Tensor:
    labels = torch.as_tensor(split.labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"{source.name}: labels have type {labels.dtype} and shape {tuple(labels.shape)}, expected integers of "
            "shape (N,)."
        )
    return labels.long()


def _pixels(source: Source, labels: Tensor, split: Split) -> Iterator[Tensor]:
    count = 0
    for chunk in split.chunks:
        pixels = torch.as_tensor(chunk)
        if tuple(pixels.shape[1:]) != source.image_shape:
            found = tuple(pixels.shape[1:])
            raise DataError(f"{source.name}: images have shape {found}, expected {source.image_shape}.")
        if (count := count + len(pixels)) > len(labels):
            break
        yield pixels if pixels.dtype == torch.uint8 else _as_bytes(source.name, pixels)
    if count != len(labels):
        raise DataError(f"{source.name} has {count} images and {len(labels)} labels in a split, expected as many.")


def _as_bytes(name: str, pixels: Tensor) -> Tensor:
    # 1.0 may be white or almost black, and a dark chunk does not tell: floats are not guessed at.
    whole = not (pixels.is_floating_point() or pixels.is_complex() or pixels.dtype == torch.bool)
    low, high = pixels.real.double().aminmax() if pixels.numel() else (0, 0)
    if not (whole and low >= 0 and high <= 255):
        raise DataError(
            f"{name}: pixels have type {pixels.dtype} and lie in {float(low):g}..{float(high):g}, expected uint8, or "
            "other integers in 0..255: images in 0..1 become (255 * images).round().to(torch.uint8)."
        )
    return pixels.to(torch.uint8)


class Digits(Source):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships: 1,437 for training, 360 for the test.

    Args:
        num_classes: Keep the digits below this number, 2 to 10.
    """

    image_shape = (1, 8, 8)

    def __init__(self, num_classes: int = 10) -> None:
        if not 2 <= num_classes <= 10:
            raise ValueError(f"num_classes must lie in 2..10, got {num_classes}.")
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
