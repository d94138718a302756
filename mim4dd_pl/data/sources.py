"""Where images come from: what a source promises, and the sets that other libraries read.

A source knows shape and classes when it is built, labels when it is loaded, and decodes pixels in chunks when these are
asked for, so that no set need fit in memory. It writes nothing but downloads; :mod:`mim4dd_pl.data.cache` keeps what
it decodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.sets import stratified_split


class Split(NamedTuple):
    """One split as a source delivers it: labels (N,) int64, and its images in order as chunks (n, c, h, w) of uint8."""

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
