"""What a trained network makes of images, layer by layer, as vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.networks import FlatNetwork, Statistics
from mim4dd_pl.similarity import minibatch_cka

_AT_ONCE = 256


@dataclass(frozen=True)
class Features:
    """The features of one trained network.

    Args:
        network: Its architecture.
        theta: Its parameters, shape (P,).
        statistics: Of its batch norms; empty without.
    """

    network: FlatNetwork
    theta: Tensor
    statistics: Statistics

    @torch.no_grad()
    def layers(self, images: Tensor) -> list[Tensor]:
        """Features of images (N, c, h, w), shallow to deep, each of shape (N, D_k)."""
        parts = [self.network.layers(self.theta, part, self.statistics) for part in images.split(_AT_ONCE)]
        return [torch.cat([layer.flatten(1) for layer in layers]) for layers in zip(*parts, strict=True)]

    def deepest(self, images: Tensor) -> Tensor:
        """Features of images (N, c, h, w) in the last layer before the classifier, shape (N, D_K)."""
        return torch.cat([self.layers(part)[-1] for part in images.split(_AT_ONCE)])

    def deepest_of(self, images: Indexable, rows: Tensor) -> Tensor:
        """The same of the images at ``rows``, shape (R,), which are read part by part."""
        return torch.cat([self.layers(images.batch(part).images)[-1] for part in rows.split(_AT_ONCE)])


def layer_similarity(one: Features, other: Features, images: Indexable, rows: Tensor) -> Tensor:
    """CKA of the layers of two networks that see the same images, estimated without bias from minibatches of 256.

    Args:
        one: Its K_1 layers are the rows.
        other: Its K_2 layers are the columns.
        images: Held-out images.
        rows: Which of them, shape (R,), at least 4; those beyond the last whole minibatch are left out.

    Returns:
        Shape (K_1, K_2), float64.
    """
    size = min(_AT_ONCE, len(rows))

    def minibatches() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        for chosen in rows[: len(rows) // size * size].split(size):
            seen = images.batch(chosen).images
            yield one.layers(seen), other.layers(seen)

    return minibatch_cka(minibatches())
