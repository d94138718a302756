"""When a run keeps a checkpoint, and which."""

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.run import run_folder
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.lightning import callbacks_of, in_a_step, repeat_step, repeat_validation, validation_follows


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
        check_positive(every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()  # what a resumed run adds to; Lightning keeps up to a hundred steps in memory

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step, last = trainer.global_step, trainer.max_steps
        if step == last - 1 or (step != last and (step % self.every_n_steps == 0 or validation_follows(trainer))):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if any(export.best_step == trainer.global_step for export in callbacks_of(trainer, Export)):
            # First: a run that is killed in between goes on from before this validation, and makes it again.
            self.save(trainer, "best")
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, torch.OutOfMemoryError) or not in_a_step(trainer):
            return
        # One of several processes cannot save, as the others wait for it elsewhere.
        if trainer.world_size == 1 and trainer.global_step > 0 and cast(DistillationModule, pl_module).whole:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if in_a_step(trainer):  # one that found no memory
            repeat_step(checkpoint)
        elif validation_follows(trainer):
            repeat_validation(checkpoint)

    @staticmethod
    def save(trainer: L.Trainer, name: str = "last") -> None:
        """Write ``last.ckpt``, or another one, now."""
        trainer.save_checkpoint(run_folder(trainer).checkpoint(name))
