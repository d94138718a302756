"""When a run keeps a checkpoint, and which."""

import math
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.run import run_folder
from mim4dd_pl.modules.distillation import DistillationModule


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run, from which it resumes to the bit, and ``best.ckpt`` beside it.

    The best is :class:`Export`'s: the state right after the validation whose images are in ``distilled/best``. Being a
    Checkpoint, this callback is called after Export has judged them.

    A run that finds no memory for a step keeps the steps that it has made.

    Args:
        every_n_steps: Outer steps between two of them. One is kept before each validation and after it as well, but
            none between the last step and its validation, because Lightning takes a run with all its steps for a
            finished one; the step before it is kept instead.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step, last = trainer.global_step, trainer.max_steps
        if step == last - 1 or (step != last and (step % self.every_n_steps == 0 or self.validation_follows(trainer))):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        exports = [callback for callback in trainer.callbacks if isinstance(callback, Export)]  # type: ignore[attr-defined]
        if any(export.best_step == trainer.global_step for export in exports):
            # First: a run that is killed in between goes on from before this validation, and makes it again.
            self.save(trainer, "best")
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, torch.OutOfMemoryError) or not self._in_a_step(trainer):
            return
        # One of several processes cannot save, as the others wait for it elsewhere.
        if trainer.world_size == 1 and trainer.global_step > 0 and cast(DistillationModule, pl_module).whole:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        if self._in_a_step(trainer):
            # The batch of a step that found no memory has begun, and is to be made.
            for progress in (loops["epoch_loop.batch_progress"][when] for when in ("total", "current")):
                progress.update(dict.fromkeys(("ready", "started", "processed"), progress["completed"]))
        elif self.validation_follows(trainer):
            # Resumed, Lightning passes over a validation that had not begun, and makes one that was in its first batch.
            progress = loops["epoch_loop.val_loop.batch_progress"]
            done = progress["total"]["completed"]
            progress["total"].update(ready=done + 1, started=done + 1, processed=done)
            progress["current"].update(ready=1, started=1, processed=0, completed=0)

    @staticmethod
    def _in_a_step(trainer: L.Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        return bool(progress.started > progress.processed)

    @staticmethod
    def validation_follows(trainer: L.Trainer) -> bool:
        """Whether the step that has just been made will be validated."""
        due = trainer.enable_validation and trainer.global_step % (trainer.val_check_batch or math.inf) == 0
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        return due and progress.ready > progress.completed  # else it has been

    @staticmethod
    def save(trainer: L.Trainer, name: str = "last") -> None:
        """Write ``last.ckpt``, or another one, now."""
        trainer.save_checkpoint(run_folder(trainer).checkpoint(name))
