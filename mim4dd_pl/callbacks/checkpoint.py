"""When a run keeps a checkpoint."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run, from which it resumes to the bit.

    Args:
        every_n_steps: Outer steps between two of them; each validation is followed by one as well.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"LastCheckpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self._in_step = False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._in_step = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._in_step = False
        # Where a validation follows, the checkpoint waits for it: a resumed run would not make up for it.
        validates = trainer.enable_validation and trainer.global_step % (trainer.val_check_batch or math.inf) == 0
        if trainer.global_step % self.every_n_steps == 0 and not validates:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A step that finds no memory has changed nothing yet; a validation that does would be missed after resuming.
        if isinstance(exception, torch.OutOfMemoryError) and self._in_step and trainer.global_step > 0:
            self._save(trainer)

    @staticmethod
    def _save(trainer: L.Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt")
