"""The same network, written for the compiler.

The compiler fuses elementwise work and leaves convolutions and norms to libraries. :func:`lower` rewrites the modules
that do better otherwise: group and batch norms as their formula (which has the derivatives of every order that compiled
code needs), and on the CPU 3x3 convolutions as matrix products. Parameters keep their names, shapes and order.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from mim4dd_pl.networks.base import Network
from mim4dd_pl.networks.batchnorm import BatchNorm
from mim4dd_pl.networks.winograd import saves, winograd_conv


def lower(network: Network, device: torch.device) -> Network:
    """Replace in ``network`` what compiles better in another form on ``device``; returns it."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            # These very classes: one derived from them may compute something else.
            if type(child) is nn.GroupNorm:
                setattr(parent, name, _GroupNorm(child))
            elif type(child) is BatchNorm:
                setattr(parent, name, _BatchNorm(child))
            elif device.type == "cpu" and type(child) is nn.Conv2d and _is_plain(child):
                setattr(parent, name, _Conv3x3(child))
    return network


def _is_plain(conv: nn.Conv2d) -> bool:
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)


class _GroupNorm(nn.Module):
    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, features: Tensor) -> Tensor:
        grouped = features.unflatten(1, (self.groups, -1))  # (B, groups, c / groups, h, w)
        centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
        scaled = centred * (centred.square().mean((2, 3, 4), keepdim=True) + self.eps).rsqrt()
        normal: Tensor = scaled.flatten(1, 2)
        if not isinstance(self.weight, Tensor):
            return normal
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class _BatchNorm(nn.Module):
    """With the statistics of the minibatch only: compiled functions train, and do not classify."""

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, features: Tensor) -> Tensor:
        centred = features - features.mean((0, 2, 3), keepdim=True)
        normal: Tensor = centred * (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).rsqrt()
        if not isinstance(self.weight, Tensor):
            return normal
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class _Conv3x3(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding = (int(conv.padding[0]), int(conv.padding[1]))

    def forward(self, images: Tensor) -> Tensor:
        height, width = (side + 2 * more - 2 for side, more in zip(images.shape[2:], self.padding, strict=True))
        if images.shape[1] < 16:
            return self._as_product(images, height, width)
        if saves(height, width):
            return winograd_conv(images, self.weight, self.bias, self.padding)
        return conv2d(images, self.weight, self.bias, padding=self.padding)

    def _as_product(self, images: Tensor, height: int, width: int) -> Tensor:
        """Few channels in: one product with the nine shifted copies side by side; shape (B, k, height, width)."""
        rows, columns = self.padding
        padded = pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9 c, k)
        out = torch.cat(shifted, -1).flatten(0, 2) @ weight
        out = out if self.bias is None else out + self.bias
        return out.view(len(images), height, width, -1).permute(0, 3, 1, 2)
