"""A small vision transformer (Dosovitskiy et al. 2021)."""

import torch
from torch import Tensor, nn

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import Blocks


class _Attention(nn.Module):
    """Multi-head self-attention as its formula: the fused kernels are not twice differentiable."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (B, n, 3, heads, dim / heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (self.scale * q @ k.transpose(-2, -1)).softmax(-1)  # (B, heads, n, n)
        mixed: Tensor = self.mix((attention @ v).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on a grid of tokens (B, dim, h, w)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(dim), _Attention(dim, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, grid: Tensor) -> Tensor:
        tokens: Tensor = grid.flatten(2).transpose(1, 2)  # (B, n, dim)
        tokens = tokens + self.attention(tokens)
        tokens = tokens + self.mlp(tokens)
        return tokens.transpose(1, 2).reshape(grid.shape)


class ViT(Blocks):
    """Patches as tokens, ``depth`` transformer blocks with the norm first, the mean token, one linear layer.

    The default has the width and the heads of ViT-Ti and half of its depth: 2.7 million parameters.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929).

    Departs from it: the mean of the tokens for the class token (Beyer et al. 2022, arXiv:2205.01580), no dropout.

    Args:
        image_shape: (channels, height, width) of one image; sides that ``patch`` divides.
        num_classes: Number of logits C.
        patch: Side of a patch in pixels.
        depth: Number of blocks.
        dim: Width of a token; a multiple of ``heads``.
        heads: Attention heads.

    Raises:
        ValueError: If ``patch`` does not divide the image or ``heads`` not ``dim``, or a setting is below 1.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: int, patch: int = 4, depth: int = 6, dim: int = 192, heads: int = 3
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.patch, self.depth, self.dim, self.heads = patch, depth, dim, heads
        if min(patch, depth, dim, heads) < 1 or dim % heads:
            raise ValueError(f"ViT needs positive settings and a dim that heads divides, got {self.extra_repr()}.")
        if height % patch or width % patch:
            raise ValueError(
                f"patch must divide the sides of the images, got {patch} for {height}x{width}: set a divisor."
            )
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(dim, height // patch, width // patch))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tokens after each block, as maps (B, dim, height / patch, width / patch)."""
        return super().layers(self.embed(images) + self.position)

    def features(self, last: Tensor) -> Tensor:
        tokens: Tensor = self.norm(last.flatten(2).transpose(1, 2))  # (B, n, dim)
        return tokens.mean(1)
