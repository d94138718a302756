"""Labelled images: what networks are trained on and tested with."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.normalization import Normalization, chunk_length


class Batch(NamedTuple):
    """Normalised images (B, c, h, w) float32 and labels (B,) int64."""

    images: Tensor
    labels: Tensor


class Indexable(Protocol):
    """Anything a network can be trained on: counted, and read by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch: ...


@dataclass(frozen=True)
class InMemory:
    """Normalised images and their labels as they are: synthetic sets and random subsets.

    Args:
        images: Shape (N, c, h, w), float.
        labels: Shape (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """The images at ``indices``, shape (B,)."""
        return Batch(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageSet:
    """One split: rows of the source's uint8 images, their labels, and how they are normalised.

    The images are shared by the splits of a source and may be a file mapped into memory: nothing copies them.

    Args:
        images: Of the source, shape (M, c, h, w), uint8, on the host.
        rows: Which of them are this split, shape (N,), int64, on the host.
        labels: Of the split, shape (N,), int64 in 0..C-1; batches are on their device.
        normalization: Fitted on the training rows, on the device of the labels.
        num_classes: C.
        content: SHA-256 of the source's images and labels.
        resident: The split's own pixels on the device of the labels, shape (N, c, h, w), uint8; where there are none,
            each batch is gathered on the host.
    """

    images: Tensor
    rows: Tensor
    labels: Tensor
    normalization: Normalization
    num_classes: int
    content: str
    resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """The normalised images at ``indices``, shape (B,)."""
        if self.resident is not None:
            pixels = self.resident[indices]
        else:
            pixels = self.images[self.rows[indices.cpu()]].to(self.labels.device)
        return Batch(self.normalization(pixels.float() / 255), self.labels[indices])

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, ``size`` at a time."""
        for indices in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(indices)

    def to(self, device: torch.device) -> "ImageSet":
        """The same split on ``device``, moved once; pixels go to an accelerator as far as :func:`fits` lets them."""
        if device not in self._elsewhere:
            labels, normalization = self.labels.to(device), self.normalization.to(device)
            moved = replace(self, labels=labels, normalization=normalization, resident=None)
            size = len(self) * self.images[0].numel()
            if device.type == "cuda" and fits(size, torch.cuda.mem_get_info(device)[0]):
                moved = moved.resident_on(device)
            self._elsewhere[device] = moved
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, "ImageSet"]:
        return {}

    def resident_on(self, device: torch.device) -> "ImageSet":
        """The same split with its own pixels on ``device``, copied there part by part."""
        pixels = torch.empty(len(self), *self.images.shape[1:], dtype=torch.uint8, device=device)
        length = chunk_length(self.images)
        for rows, into in zip(self.rows.split(length), pixels.split(length), strict=True):
            into.copy_(self.images[rows])
        return replace(self, resident=pixels)

    @property
    def rarest(self) -> int:
        """Images of the class that has fewest."""
        return int(torch.bincount(self.labels, minlength=self.num_classes).min())

    def per_class(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` random images of each class without replacement, class by class, shape (C * count,).

        Raises:
            DataError: If a class has fewer images.
        """
        labels = self.labels.cpu()
        check_per_class(labels, self.num_classes, count)
        order = torch.randperm(len(labels), generator=generator)
        ordered = labels[order]
        chosen = [order[ordered == label][:count] for label in range(self.num_classes)]
        return torch.cat(chosen).to(self.labels.device)

    def fingerprint(self) -> str:
        """SHA-256 of content and rows: what a stored trajectory or artefact was made from."""
        return fingerprint(self.content, self.rows)


def fingerprint(content: str, rows: Tensor) -> str:
    """SHA-256 of some rows of images and labels of known hash."""
    return hashlib.sha256(content.encode() + rows.numpy().tobytes()).hexdigest()


def check_per_class(labels: Tensor, num_classes: int, count: int) -> None:
    """Refuse to draw ``count`` images of each class where one has fewer.

    Raises:
        DataError: Names the class.
    """
    members = torch.bincount(labels, minlength=num_classes)
    if int(members.min()) < count:
        label = int((members < count).int().argmax())
        raise DataError(
            f"{count} real images per class are asked for, class {label} has {int(members[label])} training images: "
            "ask for fewer."
        )


def fits(size: int, free: int) -> bool:
    """Whether ``size`` bytes of pixels go to a device with so many free: they may take half of them."""
    return 2 * size <= free


def content_hash(image_shape: ImageShape, labels: Tensor, chunks: Iterable[Tensor]) -> str:
    """SHA-256 over shape, labels and uint8 pixels, however these are cut into chunks."""
    digest = hashlib.sha256(repr((len(labels), *image_shape)).encode() + labels.numpy().tobytes())
    for chunk in chunks:
        digest.update(np.ascontiguousarray(chunk.numpy()).data)
    return digest.hexdigest()


def stratified_split(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that every class keeps its share.

    Args:
        labels: Shape (N,), int64.
        held_out: Number of indices in the second part.
        seed: Decides the split.

    Returns:
        Two sorted index tensors that are disjoint and together all of 0..N-1.

    Raises:
        DataError: If a part is smaller than the number of classes, or a class has a single image.
    """
    from sklearn.model_selection import train_test_split  # slow to import, and needed here only

    try:
        kept, held = train_test_split(
            np.arange(len(labels)), test_size=held_out, stratify=labels.numpy(), random_state=seed
        )
    except ValueError as error:
        raise DataError(
            f"{len(labels)} images cannot be split in {held_out} and the rest ({error}): see validation_fraction and "
            "max_train_images."
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))
