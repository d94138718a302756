"""How pixels become what a network sees: each channel standardised, then whitened if asked for.

Both are fitted on the training images of a split and applied to every image alike, batch by batch.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

MOST_FEATURES = 4096
"""c * h * w up to which images are whitened: the matrix has this number squared of entries."""

_CHUNK = 2**24
"""Pixels that are gathered at a time."""


@dataclass(frozen=True)
class Whitening:
    r"""ZCA: decorrelates pixels and stays as close to the image as a whitening can.

    .. math:: z = (x - \mu)\, W, \quad W = U (\Lambda + \epsilon)^{-1/2} U^T, \quad \Sigma = U \Lambda U^T

    Source: Bell & Sejnowski 1997 (the "independent components" of natural scenes), as kornia fits it.

    Args:
        mean: mu, of the normalised training images, shape (D,) with D = c * h * w.
        matrix: W, shape (D, D).
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images, shape (..., c, h, w), as whitened ones of the same shape."""
        return ((images.flatten(-3) - self.mean) @ self.matrix).view_as(images)

    def undo(self, images: Tensor) -> Tensor:
        """Whitened images, shape (..., c, h, w), as the normalised ones they were."""
        return (images.flatten(-3) @ self._inverse + self.mean).view_as(images)

    def to(self, target: torch.device | Tensor) -> "Whitening":
        """The same on a device, or with the device and type of a tensor."""
        return Whitening(self.mean.to(target), self.matrix.to(target))

    @cached_property
    def _inverse(self) -> Tensor:
        """W^-1, shape (D, D): not stored, which would double an artefact of 36 MiB (CIFAR)."""
        inverse: Tensor = torch.linalg.inv(self.matrix.double())
        return inverse.to(self.matrix)


@dataclass(frozen=True)
class Normalization:
    """What makes pixels in [0, 1] an input of a network.

    Args:
        mean: Of the training images over N, h, w with pixels in [0, 1], shape (c,).
        std: Likewise, shape (c,), positive.
        whitening: Applied after them; none by default.
    """

    mean: Tensor
    std: Tensor
    whitening: Whitening | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images with pixels in [0, 1] as networks see them, shape (..., c, h, w)."""
        images = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return images if self.whitening is None else self.whitening(images)

    def inverse(self, images: Tensor) -> Tensor:
        """The pixels behind ``images``, shape (..., c, h, w); learned ones may leave [0, 1]."""
        images = images if self.whitening is None else self.whitening.undo(images)
        return images * self.std[:, None, None] + self.mean[:, None, None]

    def limits(self) -> Tensor:
        """What black and white pixels become in each channel, before any whitening, shape (2, c, 1, 1)."""
        black = torch.zeros(len(self.mean), 1, 1).to(self.mean)
        return replace(self, whitening=None)(torch.stack([black, black + 1]))

    def equals(self, other: "Normalization") -> bool:
        """Whether both do the same to every image."""
        ours, theirs = self.whitening, other.whitening
        same = torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)
        if ours is None or theirs is None:
            return same and ours is theirs
        return same and torch.equal(ours.mean, theirs.mean) and torch.equal(ours.matrix, theirs.matrix)

    def to(self, target: torch.device | Tensor) -> "Normalization":
        """The same on a device, or with the device and type of a tensor."""
        whitening = None if self.whitening is None else self.whitening.to(target)
        return Normalization(self.mean.to(target), self.std.to(target), whitening)


def statistics(images: Tensor, rows: Tensor | None = None) -> Normalization:
    """Mean and std of each channel with pixels in [0, 1].

    Args:
        images: Shape (M, c, h, w), uint8; may be larger than memory.
        rows: Those that count, shape (N,); all by default.

    Returns:
        Both of shape (c,), float32. The std is at least one grey level (1/255), so a constant channel normalises to
        zero.
    """
    rows = torch.arange(len(images)) if rows is None else rows
    # Moments from the histogram: exact, whatever the number of images.
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in rows.split(chunk_length(images)):
        for channel, count in zip(images[part].unbind(1), counts, strict=True):
            count += torch.bincount(channel.flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts[0].sum()
    means = (shares * levels).sum(1)
    stds = (shares * (levels - means[:, None]).square()).sum(1).sqrt()
    return Normalization(means.float(), stds.float().clamp(min=1 / 255))


def whitened(normalization: Normalization, images: Tensor, rows: Tensor) -> Normalization:
    """``normalization`` with a ZCA whitening fitted behind it (eps 0.1, as the field's experts are trained on).

    Source: kornia's ``ZCAWhitening``, the implementation behind the published numbers of trajectory matching.

    Args:
        normalization: Without whitening.
        images: Shape (M, c, h, w), uint8.
        rows: The training images, shape (N,); they are taken to memory as float32.
    """
    from kornia.enhance import ZCAWhitening  # slow to import, and needed here only

    inputs = torch.empty(len(rows), images[0].numel())
    for part, into in zip(*(whole.split(chunk_length(images)) for whole in (rows, inputs)), strict=True):
        into.copy_(normalization(images[part].float() / 255).flatten(1))
    zca = ZCAWhitening(eps=0.1).fit(inputs)
    return replace(normalization, whitening=Whitening(zca.mean_vector.flatten(), zca.transform_matrix))


def chunk_length(images: Tensor) -> int:
    """How many of ``images`` to take at a time."""
    return max(1, _CHUNK // images[0].numel())
