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
from mim4dd_pl.basics.names import CANVASES, DISTILLED, LAST, RANDOM, RANDOM_SOFT, WHOLE, best_row, hard_labels
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.run import data_of, find, random_sets, run_folder
from mim4dd_pl.callbacks.tables import print_lines, print_scores, write_scores
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.population.evaluator import Evaluator
from mim4dd_pl.population.scores import Score, label_robust_score
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.artefact import SHEET, read_distilled
from mim4dd_pl.stored.distilled import Distilled, grid, save_png

_log = logging.getLogger(__name__)


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
        self.results: RunFolder | None = None
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
        module, run = cast(DistillationModule, pl_module), run_folder(trainer)
        evaluation, best_step = find(trainer, Evaluation), find(trainer, Export).best_step
        best, last = (read_distilled(run.distilled(which)) for which in ("best", "last"))
        self.scores = []
        if best_step != trainer.global_step:
            self.scores.append(_score(evaluation.evaluator, best_row(best_step), best))
        self.scores += [_score(evaluation.evaluator, LAST, last), *self._others(module, evaluation, last, LAST)]
        self._lap("closing table")
        if trainer.is_global_zero:
            device = trainer.strategy.root_device
            about = {"peak_memory_gib": round(peak_memory(device), 3), "machine": machine(device), **last.facts}
            _write_comparison(run.comparison, module, best)
            self._close(run, about)

    def _close(self, run: RunFolder, about: dict[str, Any]) -> None:
        """Write the table and print it with the run's minutes and paths."""
        minutes = {stage: seconds / 60 for stage, seconds in self._seconds.items()}
        ranking = self._ranking(LAST)
        write_scores(run, self.scores, {"ranking": ranking, "minutes": minutes, **about})
        print_scores(self.scores, ranking)
        parts = ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items())
        print_lines(
            {
                "minutes": f"{sum(minutes.values()):.1f} ({parts})",
                "artefact": run.distilled("best"),
                "picture": run.distilled("best") / SHEET,
                "beside real": run.comparison,
                "results": run.results,
                "TensorBoard": f"tensorboard --logdir {run.path}",
            }
        )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Now, and not after minutes of training: the row with an expert's labels can be done without.
        module = cast(DistillationModule, pl_module)
        data = data_of(module)
        self._has_expert = False
        try:
            module.open_experts(data)
            self._has_expert = data.normalizes_as_fitted
        except StoredFileError as error:
            _log.info("No row with an expert's labels: %s", error)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, evaluation = cast(DistillationModule, pl_module), find(trainer, Evaluation)
        distilled = evaluation.evaluated(module)
        self.scores = [evaluation.latest, *self._others(module, evaluation, distilled, DISTILLED)]
        ranking = self._ranking(DISTILLED)
        print_scores(self.scores, ranking)
        if self.results is not None and trainer.is_global_zero:
            write_scores(self.results, self.scores, {"ranking": ranking, **distilled.facts})
            print_lines({"results": self.results.results})

    def state_dict(self) -> dict[str, Any]:
        self._lap("distillation")
        return dict(self._seconds)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = dict(state_dict)

    def _lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _others(
        self, module: DistillationModule, evaluation: Evaluation, distilled: Distilled, name: str
    ) -> list[Score]:
        """Every row but those of the distilled set on the module's own network."""
        evaluator, train = evaluation.evaluator, data_of(module).train.to(module.device)
        students, formation = evaluator.protocol.num_students, distilled.formation
        draws = random_sets(module, len(distilled.labels), students)
        rows = []
        if distilled.label_logits is not None:
            rows.append(_score(evaluator, hard_labels(name), replace(distilled, label_logits=None)))
        rows.append(evaluator.test(RANDOM, evaluator.train(draws)))
        if formation > 1:
            canvases = random_sets(module, len(distilled.labels), students, formation)
            rows.append(evaluator.test(CANVASES, evaluator.train(canvases)))
        if module.trainer.strategy.broadcast(self._has_expert):
            seen = [(draw.images, module.seen_by_expert(draw.images)) for draw in draws]
            sets = [InMemory(images, logits.softmax(1)) for images, logits in seen if logits is not None]
            if sets:
                rows.append(evaluator.test(RANDOM_SOFT, evaluator.train(sets)))
        if self.whole_set is not None:
            rows.append(evaluator.test(WHOLE, evaluator.train([train] * students, self.whole_set)))
        for network in evaluation.across:
            rows.append(_score(evaluator, name, distilled, network))
            rows.append(evaluator.test(RANDOM, evaluator.train(draws, network=network)))
        return rows

    def _ranking(self, name: str) -> dict[str, float]:
        """HLR, IOR and LRS of the distilled set on the module's own network, as far as their rows are there."""
        means: dict[str, float] = {}
        for score in self.scores:
            means.setdefault(score.trained_on, score.mean)  # the own network comes first
        soft = hard_labels(name) in means
        random, hard = (RANDOM_SOFT, hard_labels(name)) if soft else (RANDOM, name)
        ranking = {}
        if WHOLE in means:
            ranking["HLR"] = means[WHOLE] - means[hard]
        if random in means:
            ranking["IOR"] = means[name] - means[random]
        if len(ranking) == 2:
            ranking["LRS"] = label_robust_score(ranking["HLR"], ranking["IOR"])
        return ranking


def _score(evaluator: Evaluator, name: str, distilled: Distilled, network: FlatNetwork | None = None) -> Score:
    """The row of a distilled set."""
    return evaluator.test(name, evaluator.train_on(distilled, network))


def _write_comparison(path: Path, module: DistillationModule, learned: Distilled) -> None:
    """The first learned image of up to ten classes above a random real one of each."""
    (draw,) = random_sets(module, len(learned.labels), 1)
    first = [rows[0] for rows in learned.shown().values()][:10]
    pixels = torch.cat([learned.pixels(first), replace(learned, images=draw.images, formation=1).pixels(first)])
    with replacing(path) as temporary:
        save_png(grid(pixels, per_row=len(first)), temporary)
