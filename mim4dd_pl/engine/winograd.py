r"""3x3 convolutions as Winograd's F(4x4, 3x3): a quarter of the multiplications, and only elementwise work and one
batched matrix product, which compile and differentiate well in every order.

A tile of 4x4 outputs is :math:`A^T [(G w G^T) \odot (B^T d B)] A` for the 6x6 inputs d under it. The matrices evaluate
polynomials at 0, the two points :math:`\pm p`, :math:`\pm q` and infinity. With :math:`p^2 = 1/2, q^2 = 2` the rounding
error in float32 is half of that of the usual points 1 and 2, and six times that of a direct convolution.

Source: Lavin & Gray 2016 (arXiv:1509.09308); the choice of points as in Barabasz et al. 2020 (arXiv:1803.10986).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

_PP, _QQ = 0.5, 2.0
_P, _Q = math.sqrt(_PP), math.sqrt(_QQ)


def winograd_conv(images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """The 3x3 convolution of stride 1 with zero padding.

    Args:
        images: Shape (B, c, h, w).
        weight: Shape (k, c, 3, 3).
        bias: Shape (k,), if any.
        padding: Of height and width, on both sides.

    Returns:
        Shape (B, k, h + 2 padding - 2, w + 2 padding - 2), channels last in memory.
    """
    batch, channels, height, width = images.shape
    out_height, out_width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    rows, columns = tiles(out_height), tiles(out_width)
    # Channels last, so that every transform runs over contiguous channels.
    padded = pad(
        images.permute(0, 2, 3, 1),
        (
            *(0, 0),
            *(padding[1], 4 * (columns + 1) - width - padding[1]),
            *(padding[0], 4 * (rows + 1) - height - padding[0]),
        ),
    )
    by_row = padded.view(batch, rows + 1, 4, 4 * (columns + 1), channels)
    half = torch.stack(_inputs(_overlapping(by_row, 1)))  # (6, B, rows, 4 (columns + 1), c)
    by_column = half.view(6, batch, rows, columns + 1, 4, channels)
    data = torch.stack(_inputs(_overlapping(by_column, 3)))  # (6, 6, B, rows, columns, c)
    half = torch.stack(_kernel(weight.unbind(2)))  # (6, k, c, 3)
    kernel = torch.stack(_kernel(half.unbind(3)))  # (6, 6, k, c)
    product = torch.bmm(data.view(36, -1, channels), kernel.view(36, -1, channels).transpose(1, 2))
    half = torch.stack(_outputs(product.view(6, 6, batch, rows, columns, -1).unbind(0)))
    out = torch.stack(_outputs(half.unbind(1)))  # (4 rows, 4 columns, B, rows, columns, k)
    out = out.permute(2, 3, 0, 4, 1, 5).reshape(batch, 4 * rows, 4 * columns, -1)
    out = out[:, :out_height, :out_width].permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None]


def tiles(side: int) -> int:
    """How many tiles of 4 cover ``side`` outputs."""
    return -(-side // 4)


def saves(height: int, width: int) -> bool:
    """Whether tiles of 4x4 cover an output of this size with little enough waste."""
    return 16 * tiles(height) * tiles(width) < 2.4 * height * width


def _overlapping(blocks: Tensor, tile: int) -> list[Tensor]:
    """The six inputs of each tile: the four of its own block and the first two of the next; blocks at dim ``tile``."""
    own = blocks.narrow(tile, 0, blocks.shape[tile] - 1).unbind(tile + 1)
    following = blocks.narrow(tile, 1, blocks.shape[tile] - 1).unbind(tile + 1)
    return [*own, *following[:2]]


def _inputs(d: Sequence[Tensor]) -> list[Tensor]:
    """B^T d: six tensors to six."""
    even_p, odd_p = d[4] - _QQ * d[2], _P * (d[3] - _QQ * d[1])
    even_q, odd_q = d[4] - _PP * d[2], _Q * (d[3] - _PP * d[1])
    ends = [_PP * _QQ * d[i] - (_PP + _QQ) * d[i + 2] + d[i + 4] for i in (0, 1)]
    return [ends[0], even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, ends[1]]


def _kernel(w: Sequence[Tensor]) -> list[Tensor]:
    """G w: three tensors to six."""
    scale_p, scale_q = 2 * _PP * (_PP - _QQ), 2 * _QQ * (_QQ - _PP)
    even_p, odd_p = (w[0] + _PP * w[2]) / scale_p, w[1] * (_P / scale_p)
    even_q, odd_q = (w[0] + _QQ * w[2]) / scale_q, w[1] * (_Q / scale_q)
    return [w[0] / (_PP * _QQ), even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, w[2]]


def _outputs(m: Sequence[Tensor]) -> list[Tensor]:
    """A^T m: six tensors to four."""
    even_p, odd_p, even_q, odd_q = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + even_p + even_q,
        _P * odd_p + _Q * odd_q,
        _PP * even_p + _QQ * even_q,
        _P * _PP * odd_p + _Q * _QQ * odd_q + m[5],
    ]
