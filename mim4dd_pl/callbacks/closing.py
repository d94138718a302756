"""The table at the end of a run: the distilled set beside its controls, on the test images."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
from rich.console import Console
from rich.table import Table

from mim4dd_pl.artefact import read_distilled
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.data import ImageDataModule
from mim4dd_pl.evaluation import Classifiers, train_students
from mim4dd_pl.files import write_text
from mim4dd_pl.modules import DistillationModule
from mim4dd_pl.population import Training


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
        for needed in (Evaluation, Export):
            if stage == "fit" and not any(isinstance(callback, needed) for callback in trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError(f"ClosingTable needs the callback {needed.__name__} in trainer.callbacks.")
        self._clock = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lap("experts")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lap("distillation")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._lap("distillation")
        rows = self._rows(trainer, cast(DistillationModule, pl_module))
        self._lap("closing table")
        minutes = {stage: seconds / 60 for stage, seconds in self._seconds.items()}
        results = {"test": [row._asdict() for row in rows], "minutes": minutes}
        run = Export.folder(trainer).parent
        write_text(run / "results.json", json.dumps(results, indent=2) + "\n")
        _print(rows, minutes, run)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._seconds)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The experts of this process were timed before the checkpoint was read.
        state_dict["experts"] += self._seconds["experts"]
        self._seconds = state_dict

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _rows(self, trainer: L.Trainer, module: DistillationModule) -> list[_Row]:
        evaluation, export = (
            next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
            for kind in (Evaluation, Export)
        )
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        train, test = data.train.to(module.device), data.test.to(module.device)

        def row(name: str, images: int, students: Classifiers) -> _Row:
            for batch in test.batches(data.evaluation_batch_size):
                students.update(batch)
            accuracies = students.accuracies()
            return _Row(name, images, float(accuracies.mean()), float(accuracies.std()), len(accuracies))

        rows = []
        count = len(module.synthetic)
        folder = export.folder(trainer)
        last_is_best = export.best_step == trainer.global_step
        names = {"best": f"distilled, best on validation (step {export.best_step:,})", "last": "distilled, last"}
        for which in ("best",) if last_is_best else ("best", "last"):
            distilled = read_distilled(folder / which)
            rows.append(row(names[which], count, evaluation.students_of(module, distilled.images, distilled.labels)))
        chosen = train.per_class(module.synthetic.images_per_class, module.stream.at("random real").generator())
        rows.append(row("random real images", count, evaluation.students_of(module, *train.batch(chosen))))
        if self.whole_set is not None:
            stream = module.stream.at("evaluation")
            students = train_students(
                module.network, train, self.whole_set, evaluation.num_students, stream, module.device
            )
            rows.append(row("whole training set", len(train), students))
        return rows


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
        ("results", run / "results.json"),
        ("TensorBoard", f"tensorboard --logdir {run}"),
    ):
        console.print(f"{name:<12} {path}", highlight=False, soft_wrap=True)
