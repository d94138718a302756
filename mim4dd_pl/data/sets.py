"""Labelled images in memory: what networks are trained on and tested with."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mim4dd_pl.errors import DataError


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
    """One split in memory: uint8 pixels, labels, and the statistics that normalise them.

    Args:
        images: Shape (N, c, h, w), uint8.
        labels: Shape (N,), int64 in 0..C-1.
        mean: Of the training images over N, h, w with pixels in [0, 1], shape (c,).
        std: Likewise, shape (c,), positive.
        num_classes: C.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """The normalised images at ``indices``, shape (B,)."""
        pixels = self.images[indices].float() / 255
        return Batch((pixels - self.mean[:, None, None]) / self.std[:, None, None], self.labels[indices])

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, ``size`` at a time."""
        for indices in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(indices)

    def to(self, device: torch.device) -> "ImageSet":
        """The same split on ``device``."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def per_class(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` random images of each class without replacement, class by class, shape (C * count,).

        Raises:
            DataError: If a class has fewer images.
        """
        labels = self.labels.cpu()
        order = torch.randperm(len(labels), generator=generator)
        chosen = []
        for label in range(self.num_classes):
            members = order[labels[order] == label]
            if len(members) < count:
                raise DataError(
                    f"{count} real images per class are asked for, class {label} has {len(members)} training images: "
                    "lower model.images_per_class."
                )
            chosen.append(members[:count])
        return torch.cat(chosen).to(self.labels.device)

    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels: what a stored trajectory or artefact was made from."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel with pixels in [0, 1].

    Args:
        images: Shape (N, c, h, w), uint8.

    Returns:
        Two tensors of shape (c,), float32. The std is at least one grey level (1/255), so a constant channel
        normalises to zero.
    """
    # Moments from the histogram: exact, and a fraction of the memory of a float copy.
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten().int(), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean)
        stds.append(((share * (levels - mean).square()).sum()).sqrt())
    return torch.stack(means).float(), torch.stack(stds).float().clamp(min=1 / 255)


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
            f"{len(labels)} images cannot be split in {held_out} and the rest ({error}): see data.validation_fraction "
            "and data.max_train_images."
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))
