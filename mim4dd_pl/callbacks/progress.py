"""How far a run is: a bar on a terminal; elsewhere a line per validation, and at least one a minute."""

import sys
import time
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mim4dd_pl.basics.names import MATCHING_LOSS, VALIDATION_ACCURACY
from mim4dd_pl.modules.lightning import validation_follows

_SILENCE = 60.0
"""Seconds after which a line is due, whatever the run does; a step that ends says one a little earlier."""


class StepProgress(ProgressBar):
    """Counts outer steps, with the matching loss, the latest validation accuracy and the time left.

    Experts and students are trained without a step: a thread says the line that is due meanwhile. ``validate`` and
    ``test`` have no other lines on their way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._enabled = True
        self._ended = Event()
        self._doing, self._latest = "", ""

    def disable(self) -> None:
        self._enabled = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        command: Any = trainer.state.fn  # an Enum
        self._stage, self._begun = command.value, time.monotonic()
        self._said = self._begun
        self._started: float | None = None
        self._doing = "before the first step" if stage == "fit" else "training students"
        self._ended = Event()
        Thread(target=self._watch, args=(trainer, self._ended), daemon=True).start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first_step, self._doing = time.monotonic(), trainer.global_step, ""
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
        # Evaluation trains its students before this callback hears of the validation.
        self._doing = "training students to evaluate" if validation_follows(trainer) else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, report=self._doing or _report(trainer))
        elif time.monotonic() - self._said > 0.9 * _SILENCE:
            self._latest = _report(trainer)
            self._say(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._doing = ""
        if trainer.state.fn == "fit":
            self._latest = _report(trainer)
            self._say(trainer)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._doing = "training the students of the other rows"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._doing = "training students for the closing table"
        self._stop_bar()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._ended.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._ended.set()
        self._stop_bar()

    def _watch(self, trainer: L.Trainer, ended: Event) -> None:
        with suppress(OSError, ValueError):  # nobody reads the output any more: the run itself notices
            while not ended.wait(max(0.01, self._said + _SILENCE - time.monotonic())):
                if time.monotonic() - self._said >= _SILENCE:
                    self._say(trainer)

    def _say(self, trainer: L.Trainer) -> None:
        self._said = time.monotonic()
        if self._bar is not None or not self._enabled:
            return
        parts = [f"{self._stage}, {self._said - self._begun:.0f} s so far"]
        if self._started is not None and trainer.max_steps > 0:
            done = trainer.global_step - self._first_step
            left = (self._said - self._started) / max(done, 1) * (trainer.max_steps - trainer.global_step)
            parts = [f"step {trainer.global_step}/{trainer.max_steps}", self._latest, f"{left:.0f} s left"]
        print("  ".join(part for part in (*parts, self._doing) if part), flush=True)

    def _stop_bar(self) -> None:
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
