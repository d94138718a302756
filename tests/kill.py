"""A callback that dies like a machine: SIGKILL, no clean-up, at a chosen moment of a fit; or is asked to stop there."""

import os
import signal
from typing import Any, Literal

import lightning as L


class KillAt(L.Callback):
    """Kills its own process, or sends it another signal.

    Args:
        step: Outer step at which to die; with ``expert``, the number of the expert.
        moment: ``step``: before the step's first computation; ``validation``: in the middle of the evaluation that
            follows the step; ``save``: when the step's checkpoint is on the disk under its temporary name;
            ``expert``: the same for the trajectory of an expert.
        signal: Number of the signal; 9 is SIGKILL.
        process: Number of the process that dies, among several.
        parent: Its parent dies, and not itself.
    """

    def __init__(
        self,
        step: int,
        moment: Literal["step", "validation", "save", "expert"],
        signal: int = 9,
        process: int = 0,
        parent: bool = False,
    ) -> None:
        self.step = step
        self.moment = moment
        self.signal = signal
        self.process = process
        self.parent = parent

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.moment == "step":
            self._kill(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.moment == "validation":
            self._kill(trainer)

    def _kill(self, trainer: L.Trainer) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.process):
            os.kill(os.getppid() if self.parent else os.getpid(), self.signal)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.moment == "save" and trainer.global_step == self.step:
            die_before("last.ckpt")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.moment == "expert":
            die_before(f"expert_{self.step:04d}.safetensors")


def die_before(name: str) -> None:
    """Die when a file of this name is whole but not yet in its place."""
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        if str(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die  # type: ignore[assignment]
