"""What we rely on of Lightning, and of torch's DDP, beyond the interface that they document: all of it is here.

``setup.cfg`` bounds their versions, and ``tests/modules/test_lightning.py`` has a test for each function.
"""

import csv
import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch.nn.parallel import DistributedDataParallel

from mim4dd_pl.modules.data import ImageDataModule

_C = TypeVar("_C", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[_C]) -> list[_C]:
    """The callbacks of one kind, in their order: ``Trainer.callbacks`` holds all, and has no type."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def datamodule_of(trainer: L.Trainer) -> ImageDataModule:
    """The data of a run: ``Trainer.datamodule``, which has no type."""
    return cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning from answering signals: the first thing that a run does is ``register_signal_handlers``.

    Its answer to SIGTERM begins a broadcast, which only the processes that got the signal would join.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def ignore_hyper_parameters(cli: Any) -> None:
    """Keep LightningCLI from opening ``ckpt_path`` for settings that overrule the recipe's: ``_parse_ckpt_path``.

    Our checkpoints hold none, and we read them with checks that it does not make. To be called before its constructor.
    """
    cli._parse_ckpt_path = lambda: None


def keep_buffers_local(module: L.LightningModule, names: Sequence[str]) -> None:
    """Keep DDP from sending these buffers around before every step; each process fills them for itself."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def step_uncounted(optimizer: LightningOptimizer) -> None:
    """A step that does not count towards ``max_steps``: Lightning counts those of its wrapper around an optimiser."""
    optimizer.optimizer.step()


def keep_history(logger: CSVLogger, steps: int) -> None:
    """Have a run that resumes add to its ``metrics.csv``, which Lightning's writer removes when it is made.

    Args:
        logger: Of the run, before it has logged anything.
        steps: Outer steps that the run has made: rows after them are logged again.
    """
    path = Path(logger.log_dir, ExperimentWriter.NAME_METRICS_FILE)
    with path.open(newline="", encoding="utf-8") if path.is_file() else nullcontext(()) as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < steps]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        writer = logger.experiment
    if rows:
        writer.metrics_keys = list(rows[0])
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, writer.metrics_keys)
            table.writeheader()
            table.writerows(rows)


def in_a_step(trainer: L.Trainer) -> bool:
    """Whether an outer step has begun and is not made: the progress of the training loop over its batches."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return bool(progress.started > progress.processed)


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the step that has just been made will be validated: the loop's progress, and ``val_check_batch``."""
    due = trainer.enable_validation and trainer.global_step % (trainer.val_check_batch or math.inf) == 0
    progress = trainer.fit_loop.epoch_loop.batch_progress.total
    return due and progress.ready > progress.completed  # else it has been


def repeat_step(checkpoint: dict[str, Any]) -> None:
    """Let a run that resumes here make the step that has begun: the loops' state in the checkpoint."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(("ready", "started", "processed"), counts["completed"]))


def repeat_validation(checkpoint: dict[str, Any]) -> None:
    """Let a run that resumes here make the validation that has not begun: the loops' state in the checkpoint.

    Lightning passes over it, but makes one that was in its first batch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    done = progress["total"]["completed"]
    progress["total"].update(ready=done + 1, started=done + 1, processed=done)
    progress["current"].update(ready=1, started=1, processed=0, completed=0)
