"""The same network, written for the compiler.

Compiled derivatives are reverse over forward mode. :class:`NormsAsFormulas` gives them norms as elementary operations:
torch's own layer, instance and batch norm return a wrong second derivative that way, in silence (seen in torch 2.15).
:func:`lower` replaces 3x3 convolutions on the CPU by matrix products, which compile better. Parameters keep their
names, shapes and order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import conv2d, pad
from torch.overrides import TorchFunctionMode

from mim4dd_pl.engine.winograd import saves, winograd_conv
from mim4dd_pl.networks.base import Network

_Part = Tensor | None  # of a norm's parameters


class NormsAsFormulas(TorchFunctionMode):
    """Inside ``with NormsAsFormulas():`` norms are computed from elementary operations, whoever calls them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _FORMULAS.get(func, func)(*args, **(kwargs or {}))


def _normal(features: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """Mean 0 and variance 1 over ``axes``."""
    centred = features - features.mean(tuple(axes), keepdim=True)
    return centred * (centred.square().mean(tuple(axes), keepdim=True) + eps).rsqrt()


def _affine(normal: Tensor, weight: _Part, bias: Tensor | None) -> Tensor:
    """Scale and shift of each channel, dimension 1."""
    ones = (1,) * (normal.ndim - 2)
    scaled = normal if weight is None else normal * weight.view(-1, *ones)
    return scaled if bias is None else scaled + bias.view(-1, *ones)


def _group_norm(
    input: Tensor, num_groups: int, weight: _Part = None, bias: _Part = None, eps: float = 1e-5, *_: Any, **__: Any
) -> Tensor:
    grouped = input.unflatten(1, (num_groups, -1))  # (B, groups, c / groups, h, w)
    return _affine(_normal(grouped, range(2, grouped.ndim), eps).flatten(1, 2), weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: _Part = None,
    bias: _Part = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Tensor:
    normal = _normal(input, range(-len(normalized_shape), 0), eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def _batch_norm(
    input: Tensor,
    weight: _Part,
    bias: _Part,
    running_mean: _Part,
    running_var: _Part,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not training:
        return torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return _affine(_normal(input, [0, *range(2, input.ndim)], eps), weight, bias)


def _functional_batch_norm(
    input: Tensor,
    running_mean: _Part,
    running_var: _Part,
    weight: _Part = None,
    bias: _Part = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, True)


def _functional_instance_norm(
    input: Tensor,
    running_mean: _Part = None,
    running_var: _Part = None,
    weight: _Part = None,
    bias: _Part = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_normal(input, range(2, input.ndim), eps), weight, bias)


_FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.batch_norm: _functional_batch_norm,
    F.instance_norm: _functional_instance_norm,
    torch.group_norm: _group_norm,
    torch.layer_norm: _layer_norm,
    torch.batch_norm: _batch_norm,
}


def lower(network: Network, device: torch.device) -> Network:
    """Replace in ``network`` what compiles better in another form on ``device``; returns it."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            # This very class: one derived from it may compute something else.
            if device.type == "cpu" and type(child) is nn.Conv2d and _is_plain(child):
                setattr(parent, name, _Conv3x3(child))
    return network


def _is_plain(conv: nn.Conv2d) -> bool:
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)


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
