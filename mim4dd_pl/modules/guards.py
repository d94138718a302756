"""Steps that leave the finite numbers: skipped one by one, refused in a row."""

import logging

import torch
from torch import Tensor

from mim4dd_pl.errors import DivergenceError

_log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""A skipped step changes nothing but the segment that is drawn, so ten segments that all fail blame the images."""


class Skips:
    """Counts the steps that are skipped.

    Attributes:
        in_row: How many since the last one that was made.
        total: How many so far.
    """

    def __init__(self, in_row: int = 0, total: int = 0) -> None:
        self.in_row, self.total = in_row, total

    def count(self, step: int, loss: Tensor, length: Tensor, student_lr: Tensor) -> None:
        """One more, with its loss, length of the pixel gradient and student lr; warns of the first of a row.

        Raises:
            DivergenceError: At the last of ``MOST_IN_A_ROW``.
        """
        self.in_row, self.total = self.in_row + 1, self.total + 1
        if self.in_row >= MOST_IN_A_ROW:
            raise DivergenceError(
                f"The matching loss is {loss:.3g} and the pixel gradient {length:.3g} at step {step}, with a "
                f"student lr of {float(student_lr):.3g}: lower model.lr_images, model.lr_student_lr or the weight of a "
                "literal information term, or set model.image_gradient_clip."
            )
        if self.in_row == 1:
            _log.warning("Step %d is skipped, as its loss or gradient is not finite.", step)


def all_finite(*values: Tensor) -> bool:
    """Whether every number of every tensor is finite; waits for the device once."""
    return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())
