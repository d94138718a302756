"""The table at the end of a run: the distilled set beside its controls, on the test images."""

import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2.functional import to_pil_image

from mim4dd_pl.artefact import read_distilled, sheet
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.data import ImageDataModule, ImageSet, Indexable, InMemory
from mim4dd_pl.files import replacing, write_text
from mim4dd_pl.modules import DistillationModule
from mim4dd_pl.population import Training

_log = logging.getLogger(__name__)
_C = TypeVar("_C", bound=L.Callback)


class _Row(NamedTuple):
    name: str
    images: int
    accuracy: float
    std: float
    students: int


class ClosingTable(L.Callback):
    """Test accuracy of students trained on the distilled set, on random real images of the same number, on everything.

    The distilled sets are those of :class:`Export`, chosen on the validation images; students are trained as
    :class:`Evaluation` trains them. Prints the table with the run's minutes and paths, and keeps it as
    ``results.json``.

    Args:
        whole_set: How students are trained on all training images; no such row by default.
    """

    def __init__(self, whole_set: Training | None = None) -> None:
        self.whole_set = whole_set
        self._seconds = {"experts": 0.0, "distillation": 0.0}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._clock = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lap("experts")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lap("distillation")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lap("distillation")
        _log.info("Training students for the closing table ...")
        rows = self._rows(trainer, cast(DistillationModule, pl_module))
        self._lap("closing table")
        minutes = {stage: seconds / 60 for stage, seconds in self._seconds.items()}
        run = Export.folder(trainer).parent
        results = {
            "test": [row._asdict() for row in rows],
            "minutes": minutes,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {trainer.strategy.root_device.type}",
            **read_distilled(run / "distilled" / "last").facts,
        }
        train = cast(ImageDataModule, trainer.datamodule).train  # type: ignore[attr-defined]
        _write_comparison(run, cast(DistillationModule, pl_module), train)
        write_text(run / "results.json", json.dumps(results, indent=2) + "\n")
        _print(rows, minutes, run)

    def state_dict(self) -> dict[str, Any]:
        self._lap("distillation")
        return dict(self._seconds)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = dict(state_dict)

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _rows(self, trainer: L.Trainer, module: DistillationModule) -> list[_Row]:
        evaluation, export = _find(trainer, Evaluation), _find(trainer, Export)
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        train, test = data.train.to(module.device), data.test.to(module.device)

        def row(name: str, sets: Sequence[Indexable], training: Training) -> _Row:
            students = evaluation.train_students(module, sets, training)
            for batch in test.batches(data.evaluation_batch_size):
                students.update(batch)
            accuracies = students.accuracies()
            return _Row(name, len(sets[0]), float(accuracies.mean()), float(accuracies.std()), len(accuracies))

        rows = []
        names = {"last": "distilled (last)"}
        if export.best_step != trainer.global_step:
            names = {"best": f"distilled (best, step {export.best_step:,})", **names}
        for which, name in names.items():
            distilled = read_distilled(export.folder(trainer) / which)
            images = InMemory(distilled.images.to(module.device), distilled.labels.to(module.device))
            rows.append(row(name, [images] * evaluation.num_students, evaluation.training))
        draws = [_random_real(module, train, number) for number in range(evaluation.num_students)]
        rows.append(row("random real images", draws, evaluation.training))
        if self.whole_set is not None:
            rows.append(row("whole training set", [train] * evaluation.num_students, self.whole_set))
        return rows


def _random_real(module: DistillationModule, train: ImageSet, number: int) -> InMemory:
    generator = module.stream.at("random real", number).generator()
    return InMemory(*train.batch(train.per_class(module.synthetic.images_per_class, generator)))


def _write_comparison(run: Path, module: DistillationModule, train: ImageSet) -> None:
    """``comparison.png``: the first learned image of up to ten classes above a random real one of each."""
    learned = read_distilled(run / "distilled" / "best")
    real = replace(learned, images=_random_real(module, train, 0).images)
    first = slice(0, 10 * module.synthetic.images_per_class, module.synthetic.images_per_class)
    pixels = torch.cat([learned.pixels()[first], real.pixels()[first]])
    with replacing(run / "comparison.png") as temporary:
        to_pil_image(sheet(pixels, per_row=len(pixels) // 2)).save(temporary, format="png")


def _find(trainer: L.Trainer, kind: type[_C]) -> _C:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def _print(rows: list[_Row], minutes: dict[str, float], run: Path) -> None:
    table = Table(title="Test accuracy of fresh students")
    table.add_column("trained on")
    table.add_column("images", justify="right")
    table.add_column("accuracy, mean +- std (students)", justify="right")
    for row in rows:
        accuracy = f"{100 * row.accuracy:.1f} +- {100 * row.std:.1f} % ({row.students})"
        table.add_row(row.name, f"{row.images:,}", accuracy)
    console = Console()
    console.print(table)
    parts = ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items())
    console.print(f"minutes      {sum(minutes.values()):.1f} ({parts})", highlight=False)
    for name, path in (
        ("artefact", run / "distilled" / "best"),
        ("picture", run / "distilled" / "best" / "sheet.png"),
        ("beside real", run / "comparison.png"),
        ("results", run / "results.json"),
        ("TensorBoard", f"tensorboard --logdir {run}"),
    ):
        console.print(f"{name:<12} {path}", highlight=False, soft_wrap=True)
