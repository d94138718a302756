"""Embedding heads g_phi: a feature map of a layer -> a point on the unit sphere.

One head per layer serves real and synthetic features alike. Every head pools, embeds and normalises; a subclass says
how it embeds.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import normalize

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.shapes import ImageShape

Pool = int | Literal["gap", "flatten"]
"""How a map is pooled: a number n averages it over a grid of at most n x n cells, so that a head's size does not depend
on the image size; ``gap`` averages it over one cell (global average pooling); ``flatten`` keeps all of it."""


class Head(nn.Module):
    """What all heads do: pool a map, embed the numbers that are left, end on the unit sphere.

    A subclass brings ``project``, which embeds, or a whole :meth:`embed`.

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        pool: Side of the pooled map, ``gap`` or ``flatten``.
    """

    def __init__(self, layer_shape: ImageShape, pool: Pool = 4) -> None:
        super().__init__()
        channels, height, width = layer_shape
        self.pool: nn.Module = nn.Identity()
        if pool != "flatten":
            cells = 1 if pool == "gap" else pool
            check_positive(pool=cells)
            height, width = min(cells, height), min(cells, width)
            self.pool = nn.AdaptiveAvgPool2d((height, width))
        self.num_features = channels * height * width
        self.project: nn.Module = nn.Identity()

    def embed(self, pooled: Tensor) -> Tensor:
        """Points (B, d) of pooled and flattened maps (B, num_features)."""
        points: Tensor = self.project(pooled)
        return points

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (B, d) of feature maps (B, c_k, h_k, w_k)."""
        return normalize(self.embed(self.pool(features).flatten(1)))


class IdentityHead(Head):
    """No learned embedding: the pooled features themselves."""


class LinearHead(Head):
    """One linear layer (as in CRD, Tian et al. 2020, arXiv:1910.10699).

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        dim: Dimension d of the embedding.
        pool: Side of the pooled map, ``gap`` or ``flatten``.
    """

    def __init__(self, layer_shape: ImageShape, dim: int = 128, pool: Pool = 4) -> None:
        super().__init__(layer_shape, pool)
        check_positive(dim=dim)
        self.project = nn.Linear(self.num_features, dim)


class MLPHead(Head):
    """Hidden layers, each with a ReLU, then a linear one (depth 1 as in SimCLR, arXiv:2002.05709).

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        hidden: Width of the hidden layers.
        depth: Number of hidden layers.
        dim: Dimension d of the embedding.
        pool: Side of the pooled map, ``gap`` or ``flatten``.
    """

    def __init__(
        self, layer_shape: ImageShape, hidden: int = 256, depth: int = 1, dim: int = 128, pool: Pool = 4
    ) -> None:
        super().__init__(layer_shape, pool)
        check_positive(hidden=hidden, depth=depth, dim=dim)
        widths = [self.num_features, *[hidden] * depth]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.project = nn.Sequential(*layers, nn.Linear(hidden, dim))


class ResidualMLPHead(Head):
    r"""A linear layer to z, then blocks that add to it what a hidden layer finds.

    .. math:: z \leftarrow z + W_2 \, \mathrm{ReLU}(W_1 z + b_1) + b_2

    Blocks that add nothing leave :class:`LinearHead`. The skip is that of He et al. 2016 (arXiv:1512.03385).

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        hidden: Width of the hidden layer of a block.
        depth: Number of blocks.
        dim: Dimension d of z and of the embedding.
        pool: Side of the pooled map, ``gap`` or ``flatten``.
    """

    def __init__(
        self, layer_shape: ImageShape, hidden: int = 256, depth: int = 2, dim: int = 128, pool: Pool = 4
    ) -> None:
        super().__init__(layer_shape, pool)
        check_positive(hidden=hidden, depth=depth, dim=dim)
        self.project = nn.Linear(self.num_features, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(depth)
        )

    def embed(self, pooled: Tensor) -> Tensor:
        z = super().embed(pooled)
        for block in self.blocks:
            z = z + block(z)
        return z
