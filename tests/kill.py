"""A callback that dies like a machine: SIGKILL, no clean-up, at a chosen moment of a fit."""

import os
import signal
from typing import Any, Literal

import lightning as L


class KillAt(L.Callback):
    """Kills its own process.

    Args:
        step: Outer step at which to die.
        moment: ``step``: before the step's first computation; ``validation``: in the middle of the evaluation that
            follows the step; ``save``: when the step's checkpoint is on the disk under its temporary name.
    """

    def __init__(self, step: int, moment: Literal["step", "validation", "save"]) -> None:
        self.step = step
        self.moment = moment

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.moment == "step" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.moment == "validation" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.moment == "save" and trainer.global_step == self.step:
            replace = os.replace

            def die(source: Any, target: Any) -> None:
                if str(target).endswith(".ckpt"):
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            os.replace = die  # type: ignore[assignment]
