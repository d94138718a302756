"""Embedding heads g_phi: a feature map of a layer -> a point on the unit sphere.

One head per layer serves real and synthetic features alike. Maps are pooled to a small grid first, so that a head's
size does not depend on the image size.
"""

from torch import Tensor, nn
from torch.nn.functional import normalize

from mim4dd_pl.shapes import ImageShape


def _pooled(layer_shape: ImageShape, grid: int) -> tuple[nn.Module, int]:
    """Adaptive average pooling to at most grid x grid, and the number of features it leaves."""
    if grid < 1:
        raise ValueError(f"model.information.embedding.grid must be at least 1, got {grid}.")
    channels, height, width = layer_shape
    size = (min(grid, height), min(grid, width))
    return nn.AdaptiveAvgPool2d(size), channels * size[0] * size[1]


class IdentityHead(nn.Module):
    """No learned embedding: pooled features on the unit sphere.

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        grid: Side of the pooled map; 1 is global average pooling.
    """

    def __init__(self, layer_shape: ImageShape, grid: int = 4) -> None:
        super().__init__()
        self.pool, _ = _pooled(layer_shape, grid)

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (B, d) of feature maps (B, c_k, h_k, w_k)."""
        return normalize(self.pool(features).flatten(1))


class LinearHead(nn.Module):
    """Pooled features, one linear layer, the unit sphere (as in CRD, Tian et al. 2020, arXiv:1910.10699).

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        dim: Dimension d of the embedding.
        grid: Side of the pooled map; 1 is global average pooling.
    """

    def __init__(self, layer_shape: ImageShape, dim: int = 128, grid: int = 4) -> None:
        super().__init__()
        self.pool, features = _pooled(layer_shape, grid)
        self.project = nn.Linear(features, _positive("dim", dim))

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (B, d) of feature maps (B, c_k, h_k, w_k)."""
        return normalize(self.project(self.pool(features).flatten(1)))


class MLPHead(nn.Module):
    """Pooled features, two layers with a ReLU between, the unit sphere (as in SimCLR, arXiv:2002.05709).

    Args:
        layer_shape: (c_k, h_k, w_k) of the layer's feature map.
        hidden: Width of the hidden layer.
        dim: Dimension d of the embedding.
        grid: Side of the pooled map; 1 is global average pooling.
    """

    def __init__(self, layer_shape: ImageShape, hidden: int = 256, dim: int = 128, grid: int = 4) -> None:
        super().__init__()
        self.pool, features = _pooled(layer_shape, grid)
        self.project = nn.Sequential(
            nn.Linear(features, _positive("hidden", hidden)), nn.ReLU(), nn.Linear(hidden, _positive("dim", dim))
        )

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (B, d) of feature maps (B, c_k, h_k, w_k)."""
        return normalize(self.project(self.pool(features).flatten(1)))


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"model.information.embedding.{name} must be at least 1, got {value}.")
    return value
