"""What hosts draw: minibatches of the synthetic images, real images, fresh networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, ImageSet
from mim4dd_pl.engine.flat import FlatNetwork

Augment = Callable[[Tensor, Stream, int], Tensor]
"""(images (B, c, h, w), stream of the segment, step) -> augmented images."""


@dataclass(frozen=True)
class Chunks:
    """Passes over the synthetic images, each a permutation cut into chunks, apart for each of K segments.

    A remainder is left out, so that every step has the same shape. Where a chunk is a multiple of the classes, it holds
    as many images of each (``balanced``), or whatever the permutation gives.

    Args:
        size: Synthetic images per step; all of them, in their order, if there are no more.
        streams: Decide order and augmentation, one for each segment.
        augment: Augmentation of a minibatch.
        balanced: As many images of each class in every chunk; ``size`` must then be a multiple of the classes.
        num_classes: C; images are sorted by class, the same number of each.
    """

    size: int
    streams: Sequence[Stream]
    augment: Augment
    balanced: bool = False
    num_classes: int = 1

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images (K, B, c, h, w) and labels (K, B) or (K, B, C) of step i."""
        x, y = zip(*(self._one(images, labels, step, stream) for stream in self.streams), strict=True)
        return torch.stack(x), torch.stack(y)

    def _one(self, images: Tensor, labels: Tensor, step: int, stream: Stream) -> tuple[Tensor, Tensor]:
        if self.size < len(images):
            per_pass = len(images) // self.size
            order = self._order(len(images), stream.at("order", step // per_pass).generator())
            chunk = order.split(self.size)[step % per_pass].to(labels.device, non_blocking=True)
            images, labels = images[chunk], labels[chunk]
        return self.augment(images, stream, step), labels

    def _order(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.balanced:
            return torch.randperm(count, generator=generator)
        each = count // self.num_classes
        within = [torch.randperm(each, generator=generator) + label * each for label in range(self.num_classes)]
        return torch.stack(within, 1).flatten()


def check_size(size: int | None, num_images: int) -> None:
    """Refuse minibatches of more synthetic images than there are."""
    if size is not None and size > num_images:
        raise ValueError(f"synthetic_batch_size is {size}, there are {num_images} synthetic images.")


def real_batch(real: ImageSet, per_class: int, stream: Stream) -> Batch:
    """Random real images, as many of each class, class by class; fewer than ``per_class`` where a class has fewer."""
    return real.batch(real.per_class(min(per_class, real.rarest), stream.at("real").generator()))


def fresh(network: FlatNetwork, streams: Sequence[Stream], like: Tensor) -> Tensor:
    """Parameters of freshly initialised networks, one for each stream, shape (K, P), as ``like`` in type and device."""
    return torch.stack([network.initial(stream.at("student")) for stream in streams]).to(like)
