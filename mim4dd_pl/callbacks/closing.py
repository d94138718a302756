"""The table at the end of a run: the distilled set beside its controls, on the test images."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import replacing
from mim4dd_pl.basics.machine import machine, peak_memory
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.run import data_of, find, random_real
from mim4dd_pl.callbacks.tables import print_lines, print_scores, write_scores
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.population.scores import Score, hard_label_recovery, improvement_over_random, label_robust_score
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.artefact import read_distilled
from mim4dd_pl.stored.distilled import Distilled, grid, save_png

_log = logging.getLogger(__name__)

DISTILLED, RANDOM, RANDOM_SOFT, WHOLE = (
    "distilled",
    "random real images",
    "random real, an expert's labels",
    "whole training set",
)


class ClosingTable(L.Callback):
    """Test accuracy of students trained on the distilled set, on random real images of the same number, on everything.

    The distilled sets are those of :class:`Export`, chosen on the validation images; students are trained as
    :class:`Evaluation` trains them. Random real images have their own classes as labels, and the soft labels of an
    expert where there is one. A fit prints the table with the run's minutes and paths, and keeps it as ``results.json``
    and ``results.csv``; ``test`` prints the same rows for what it evaluates, on other networks as well.

    Args:
        whole_set: How students are trained on all training images; no such row by default.

    Attributes:
        scores: The rows.
        results: A folder for the rows of ``test``, if they are to be kept.
    """

    def __init__(self, whole_set: Training | None = None) -> None:
        self.whole_set = whole_set
        self.scores: list[Score] = []
        self.results: Path | None = None
        self._has_expert = True
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
        pl_module.to(trainer.strategy.root_device)  # Lightning has put it on the CPU
        module, export = cast(DistillationModule, pl_module), find(trainer, Export)
        run = Export.folder(trainer).parent
        learned = {which: read_distilled(run / "distilled" / which) for which in ("best", "last")}
        names = {"last": f"{DISTILLED} (last)"}
        if export.best_step != trainer.global_step:
            names = {"best": f"{DISTILLED} (best, step {export.best_step:,})", **names}
        distilled = [self._distilled(module, names[which], learned[which]) for which in names]
        self.scores = [*distilled, *self._others(module, learned["last"], names["last"])]
        self._lap("closing table")
        minutes = {stage: seconds / 60 for stage, seconds in self._seconds.items()}
        if not trainer.is_global_zero:
            return
        about = {
            "ranking": self._ranking(names["last"]),
            "minutes": minutes,
            "peak_memory_gib": round(peak_memory(trainer.strategy.root_device), 3),
            "machine": machine(trainer.strategy.root_device),
            **learned["last"].facts,
        }
        _write_comparison(run, module, learned["best"])
        write_scores(run, self.scores, about)
        print_scores(self.scores, self._ranking(names["last"]))
        parts = ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items())
        print_lines(
            {
                "minutes": f"{sum(minutes.values()):.1f} ({parts})",
                "artefact": run / "distilled/best",
                "picture": run / "distilled/best/sheet.png",
                "beside real": run / "comparison.png",
                "results": run / "results.json",
                "TensorBoard": f"tensorboard --logdir {run}",
            }
        )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Now, and not after minutes of training: the row with an expert's labels can be done without.
        module, data = cast(DistillationModule, pl_module), cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        self._has_expert = False
        try:
            module.open_experts(data)
            self._has_expert = data.normalizes_as_fitted
        except StoredFileError as error:
            _log.info("No row with an expert's labels: %s", error)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, evaluation = cast(DistillationModule, pl_module), find(trainer, Evaluation)
        distilled = evaluation.evaluated(module)
        self.scores = [evaluation.latest, *self._others(module, distilled, DISTILLED)]
        ranking = self._ranking(DISTILLED)
        print_scores(self.scores, ranking)
        if self.results is not None and trainer.is_global_zero:
            write_scores(self.results, self.scores, {"ranking": ranking, **distilled.facts})
            print_lines({"results": self.results / "results.json"})

    def state_dict(self) -> dict[str, Any]:
        self._lap("distillation")
        return dict(self._seconds)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = dict(state_dict)

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _distilled(
        self, module: DistillationModule, name: str, distilled: Distilled, network: FlatNetwork | None = None
    ) -> Score:
        evaluation = find(module.trainer, Evaluation)
        sets = [distilled.training_set(module.device)] * evaluation.num_students
        return evaluation.score(module, name, sets, network=network, learned_lr=float(distilled.student_lr))

    def _others(self, module: DistillationModule, distilled: Distilled, name: str) -> list[Score]:
        """Every row but those of the distilled set on the module's own network."""
        evaluation = find(module.trainer, Evaluation)
        train = data_of(module).train.to(module.device)
        draws = [random_real(module, len(distilled.labels), number) for number in range(evaluation.num_students)]
        rows = []
        if distilled.label_logits is not None:
            rows.append(self._distilled(module, f"{name}, hard labels", replace(distilled, label_logits=None)))
        rows.append(evaluation.score(module, RANDOM, draws))
        if module.trainer.strategy.broadcast(self._has_expert):
            seen = [(draw.images, module.seen_by_expert(draw.images)) for draw in draws]
            sets = [InMemory(images, logits.softmax(1)) for images, logits in seen if logits is not None]
            if sets:
                rows.append(evaluation.score(module, RANDOM_SOFT, sets))
        if self.whole_set is not None:
            rows.append(evaluation.score(module, WHOLE, [train] * evaluation.num_students, self.whole_set))
        for network in evaluation.across:
            rows.append(self._distilled(module, name, distilled, network))
            rows.append(evaluation.score(module, RANDOM, draws, network=network))
        return rows

    def _ranking(self, name: str) -> dict[str, float]:
        """HLR, IOR and LRS of the distilled set on the module's own network, as far as their rows are there."""
        means: dict[str, float] = {}
        for score in self.scores:
            means.setdefault(score.trained_on, score.mean)  # the own network comes first
        soft = f"{name}, hard labels" in means
        random, hard = (RANDOM_SOFT, f"{name}, hard labels") if soft else (RANDOM, name)
        ranking = {}
        if WHOLE in means:
            ranking["HLR"] = hard_label_recovery(means[WHOLE], means[hard])
        if random in means:
            ranking["IOR"] = improvement_over_random(means[name], means[random])
        if len(ranking) == 2:
            ranking["LRS"] = label_robust_score(ranking["HLR"], ranking["IOR"])
        return ranking


def _write_comparison(run: Path, module: DistillationModule, learned: Distilled) -> None:
    """``comparison.png``: the first learned image of up to ten classes above a random real one of each."""
    real = replace(learned, images=random_real(module, len(learned.labels), 0).images)
    first = [rows[0] for rows in learned.shown().values()][:10]
    pixels = torch.cat([learned.pixels(first), real.pixels(first)])
    with replacing(run / "comparison.png") as temporary:
        save_png(grid(pixels, per_row=len(first)), temporary)
