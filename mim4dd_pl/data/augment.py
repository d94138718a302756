"""DSA: differentiable augmentation whose parameters can be replayed (Zhao & Bilen 2021, arXiv:2102.08259).

One operation is drawn per minibatch and its parameters per image. An operation is a pure function of images and
uniform numbers u, linear or affine in the images, so gradients reach the synthetic pixels; drawing is separate, from a
:class:`~mim4dd_pl.basics.randomness.Stream`, so that the same step always augments in the same way. Strengths are those
of the paper.

Colours follow the DSA code, not common image libraries: images are whitened, so nothing is clamped to [0, 1].
Images are (B, c, h, w) throughout; zero padding is the mean colour of normalised images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from mim4dd_pl.basics.randomness import Stream


def color(images: Tensor, u: Tensor) -> Tensor:
    r"""Brightness, then saturation, then contrast.

    .. math::

        x \leftarrow x + u_1 - \tfrac12,\quad
        x \leftarrow \bar x_{channels} + 2 u_2\,(x - \bar x_{channels}),\quad
        x \leftarrow \bar x_{image} + (u_3 + \tfrac12)(x - \bar x_{image})

    On grey images saturation has no effect.
    """
    shift, saturation, contrast = u[:, :, None, None, None].unbind(1)
    images = images + (shift - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def crop(images: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side in whole pixels, zero-padded."""
    batch, _, height, width = images.shape
    reach_y, reach_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    rows = (u[:, :1] * (2 * reach_y + 1)).long() + torch.arange(height, device=images.device)
    columns = (u[:, 1:] * (2 * reach_x + 1)).long() + torch.arange(width, device=images.device)
    padded = pad(images, (reach_x, reach_x, reach_y, reach_y))
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """Zero in a square of half the side at a random place; the square may leave the image."""
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        size = int(side * 0.5 + 0.5)
        # The square's first pixel is its centre minus half its size, the centre being any pixel of the image.
        first = (u[:, axis, None] * (side + (1 - size % 2))).long() - size // 2
        position = torch.arange(side, device=images.device)
        inside.append((position >= first) & (position < first + size))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0)


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirror every second image left and right."""
    return torch.where((u < 0.5)[:, :, None, None], images.flip(3), images)


def scale(images: Tensor, u: Tensor) -> Tensor:
    """Stretch each axis by its own factor in [1 / 1.2, 1.2]."""
    return _warp(images, torch.diag_embed(1 / 1.2 + u * (1.2 - 1 / 1.2)))


def rotate(images: Tensor, u: Tensor) -> Tensor:
    """Turn about the centre by an angle in [-15, 15] degrees."""
    angle = torch.deg2rad((2 * u[:, 0] - 1) * 15.0)
    cos, sin = angle.cos(), angle.sin()
    return _warp(images, torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1))


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Bilinear resampling at ``matrices`` (B, 2, 2) times the normalised output coordinates."""
    # With torch's sampler: 0.07 ms for ten 8x8 images on one core, kornia's warps take 0.63; the tests compare both.
    grid = affine_grid(pad(matrices, (0, 1)), list(images.shape), align_corners=True)
    return grid_sample(images, grid, align_corners=True)


class Operation(NamedTuple):
    """One augmentation: a function of images (B, c, h, w) and of ``draws`` numbers for each, (B, draws) in [0, 1)."""

    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int


OPERATIONS = {
    "color": Operation(color, 3),
    "crop": Operation(crop, 2),
    "cutout": Operation(cutout, 2),
    "flip": Operation(flip, 1),
    "scale": Operation(scale, 2),
    "rotate": Operation(rotate, 1),
}


class DSA:
    """One of ``operations`` per minibatch, with parameters per image, or per minibatch (:meth:`siamese`).

    Args:
        operations: Names out of ``color, crop, cutout, flip, scale, rotate``; all six by default. Leave out what
            changes the meaning of the images (digits: flip).

    Raises:
        ValueError: If a name is unknown or the list is empty.
    """

    def __init__(self, operations: Sequence[str] = tuple(OPERATIONS)) -> None:
        unknown = [name for name in operations if name not in OPERATIONS]
        if unknown or not operations:
            raise ValueError(
                f"operations takes one or more of {', '.join(OPERATIONS)}; got "
                f"{', '.join(map(str, unknown)) or 'none'}. To train without, put None (null in YAML) in its place."
            )
        self.operations = tuple(operations)

    def __repr__(self) -> str:
        return f"DSA({', '.join(self.operations)})"

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        """Augmented ``images``, (B, c, h, w), as ``stream`` decides: the same stream gives the same augmentation."""
        return self._augmented(images, stream, len(images))

    def siamese(self, images: Tensor, stream: Stream) -> Tensor:
        """The same with one draw of parameters for all images: batches of one stream are augmented alike."""
        return self._augmented(images, stream, 1)

    def _augmented(self, images: Tensor, stream: Stream, count: int) -> Tensor:
        generator = stream.generator()
        choice = int(torch.randint(len(self.operations), (), generator=generator))
        operation = OPERATIONS[self.operations[choice]]
        # Not to wait for the device in every inner step.
        u = torch.rand(count, operation.draws, generator=generator).to(images, non_blocking=True)
        return operation.apply(images, u.expand(len(images), -1))
