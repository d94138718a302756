"""How far a fit is: a bar on a terminal, one line per validation elsewhere."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mim4dd_pl.basics.names import MATCHING_LOSS, VALIDATION_ACCURACY


class StepProgress(ProgressBar):
    """Counts outer steps, with the matching loss, the latest validation accuracy and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()
        self._first_step = trainer.global_step
        if not self._enabled or trainer.max_steps < 0 or not sys.stdout.isatty():
            return
        self._bar = Progress(
            TextColumn("distilling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[report]}"),
        )
        self._task = self._bar.add_task("steps", total=trainer.max_steps, completed=trainer.global_step, report="")
        self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, report=_report(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, report="training students to evaluate ...")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None or not self._enabled or trainer.state.fn != "fit":
            return
        done = trainer.global_step - self._first_step
        left = (time.monotonic() - self._started) / max(done, 1) * (trainer.max_steps - trainer.global_step)
        print(f"step {trainer.global_step}/{trainer.max_steps}  {_report(trainer)}  {left:.0f} s left", flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _report(trainer: L.Trainer) -> str:
    metrics = trainer.callback_metrics
    parts = []
    if MATCHING_LOSS in metrics:
        parts.append(f"loss {float(metrics[MATCHING_LOSS]):.3f}")
    if VALIDATION_ACCURACY in metrics:
        parts.append(f"accuracy {100 * float(metrics[VALIDATION_ACCURACY]):.1f} %")
    return "  ".join(parts)
