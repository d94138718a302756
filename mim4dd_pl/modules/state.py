"""What a run knows beside its tensors."""

import logging
from dataclasses import dataclass

from torch import Tensor

from mim4dd_pl.basics.errors import DivergenceError

_log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""A skipped step changes nothing but the segment that is drawn, so ten segments that all fail blame the images."""


@dataclass
class RunState:
    """What a checkpoint holds beside tensors, so that a resumed run computes as the first one did.

    Attributes:
        compiled: Whether the inner loop is compiled; None until this is decided.
        in_row: Steps that were skipped since the last one that was made.
        total: Steps that were skipped so far.
        loaded_step: Outer steps of the checkpoint that was loaded; None in a fresh run.
    """

    compiled: bool | None = None
    in_row: int = 0
    total: int = 0
    loaded_step: int | None = None

    def skip(self, step: int, loss: Tensor, length: Tensor, student_lr: Tensor) -> None:
        """Count a step, with its loss, length of the pixel gradient and student lr; warns of the first of a row.

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
