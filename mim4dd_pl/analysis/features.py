"""What a trained network makes of images, layer by layer, as vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mim4dd_pl.analysis.similarity import gram, minibatch_cka
from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.batchnorm import Statistics

_AT_ONCE = 256


@dataclass(frozen=True)
class Features:
    """The features of one trained network."""

    network: FlatNetwork
    theta: Tensor  # its parameters, shape (P,)
    statistics: Statistics  # of its batch norms; empty without

    @torch.no_grad()
    def layers(self, images: Tensor, most: int | None = None) -> list[Tensor]:
        """Features of images (N, c, h, w), shallow to deep, each of shape (N, D_k).

        Maps of more than ``most`` x ``most``, if given, are averaged to that, which keeps many images in memory.
        """
        parts = [
            [_flat(maps, most) for maps in self.network.layers(self.theta, part, statistics=self.statistics)]
            for part in images.split(_AT_ONCE)
        ]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def deepest_of(self, images: Indexable, rows: Tensor) -> Tensor:
        """Features of the images at ``rows``, shape (R,), in the last layer before the classifier, shape (R, D_K)."""
        return torch.cat([self.layers(images.batch(part).images)[-1] for part in rows.split(_AT_ONCE)])

    def grams(self, images: Tensor) -> list[Tensor]:
        """The Gram matrix of each layer's features of images (N, c, h, w), shape (N, N)."""
        return [gram(layer) for layer in self.layers(images)]


def layer_similarity(one: Features, others: Sequence[Features], images: Indexable, rows: Tensor) -> list[Tensor]:
    """CKA of the layers of networks that see the same images, estimated without bias from minibatches of 256.

    Of the images at ``rows``, shape (R,), at least 4, those beyond the last whole minibatch are left out. A table for
    each of ``others``, whose K_2 layers are its columns, shape (K_1, K_2), float64.
    """
    size = min(_AT_ONCE, len(rows))

    def minibatches() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        for chosen in rows[: len(rows) // size * size].split(size):
            seen = images.batch(chosen).images
            yield one.grams(seen), [matrix for other in others for matrix in other.grams(seen)]

    table = minibatch_cka(minibatches())
    return list(table.split([len(other.network.layer_shapes()) for other in others], dim=1))


def _flat(maps: Tensor, most: int | None) -> Tensor:
    if most is not None and max(maps.shape[2:]) > most:
        maps = adaptive_avg_pool2d(maps, (min(maps.shape[2], most), min(maps.shape[3], most)))
    return maps.flatten(1)
