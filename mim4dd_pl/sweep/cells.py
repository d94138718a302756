"""A cell: one variant, one seed, one ``fit`` with a folder of its own; whether it is finished, and what it gave."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import parsed_json, write_text
from mim4dd_pl.basics.names import BEST, LAST
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.basics.yamls import dotted, read_mapping
from mim4dd_pl.sweep.plan import Sweep, Variant


@dataclass(frozen=True)
class Outcome:
    """What a finished cell reports: test accuracies as fractions, of students with the recipe's own network.

    Args:
        last: Mean over the students that were trained on the images of the last step.
        best: Of the step that the validation images choose.
        std: Standard deviation of ``last`` over the students.
        minutes: By stage of the run.
        data: Fingerprint of the training images; empty where it is not known.
    """

    last: float
    best: float
    std: float
    minutes: dict[str, float]
    data: str = ""

    @property
    def own_minutes(self) -> float:
        """Without the experts, which the cells share and the first one trains."""
        return sum(minutes for stage, minutes in self.minutes.items() if stage != "experts")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; ``folder`` is where the run, ``log.txt`` and ``cell.json`` are."""

    variant: Variant
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder / "log.txt"

    def finished_run(self) -> RunFolder | None:
        """Where its results are, as soon as they are."""
        return next((run for run in RunFolder.versions(self.folder) if run.results.exists()), None)

    def outcome(self) -> Outcome | None:
        """What the cell gave; None as long as it is not finished.

        Raises:
            StoredFileError: If it was finished with other settings, or its results cannot be read.
        """
        run = self.finished_run()
        if run is None:
            return None
        kept, settings = self._kept(), self._settings()
        if kept != settings:
            then, now = dotted(kept), dotted(settings)
            key = next(key for key in {**now, **then} if then.get(key, "none") != now.get(key, "none"))
            raise StoredFileError(
                f"{self.folder} is finished with other settings ({key.replace('.init_args', '')} was "
                f"{then.get(key, 'none')!s:.60}, is {now.get(key, 'none')!s:.60}): choose another --out, or remove it."
            )
        try:
            content = parsed_json(run.results.read_text(encoding="utf-8"))
            last = next(row for row in content["test"] if row["trained_on"] == LAST)
            best = next((row for row in content["test"] if row["trained_on"].startswith(BEST)), last)
            data = str(content.get("training images", ""))
            return Outcome(last["accuracy"], best["accuracy"], last["std"], content["minutes"], data)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise StoredFileError(
                f"{run.results} is no table of `mim4dd fit` ({error!r}): remove {self.folder}."
            ) from error

    def begin(self) -> list[str]:
        """The command that runs it: from the start, or on from its checkpoint."""
        resumes = self._kept() == self._settings() and any(
            run.checkpoint("last").exists() for run in RunFolder.versions(self.folder)
        )
        write_text(self.folder / "cell.json", json.dumps(self._settings(), indent=2) + "\n")
        command = [sys.executable, "-m", "mim4dd_pl", "fit", *self.variant.arguments()]
        logger = "--trainer.logger.init_args"
        command += [f"--seed_everything={self.seed}", f"{logger}.save_dir={self.folder}", f"{logger}.name="]
        return [*command, "--ckpt_path=last"] if resumes else command

    def _settings(self) -> dict[str, Any]:
        """All that decides the run, as plain types: contents of the recipes and not their paths."""
        recipes = {f"recipe {number}": read_mapping(path) for number, path in enumerate(self.variant.recipe)}
        settings = {"seed": self.seed, **self.variant.settings, **recipes}
        return dict(json.loads(json.dumps(settings, default=str)))

    def _kept(self) -> dict[str, Any]:
        """The settings that it was last begun with."""
        try:
            return dict(parsed_json((self.folder / "cell.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return {}


def cells(sweep: Sweep, out: Path) -> list[Cell]:
    """All cells, every variant of the first seed first: a seed that is added later renumbers none."""
    return [
        Cell(variant, seed, out / variant.name / f"seed_{seed}") for seed in sweep.seeds for variant in sweep.variants
    ]


def outcomes(cells: Sequence[Cell]) -> dict[tuple[str, int], Outcome]:
    """What the finished ones among the cells gave, by variant and seed."""
    found = {(cell.variant.name, cell.seed): cell.outcome() for cell in cells}
    return {key: outcome for key, outcome in found.items() if outcome is not None}


def mixed(outcomes: Mapping[tuple[str, int], Outcome]) -> list[str]:
    """Variants whose seeds were distilled from different training images, which changed under the same path."""
    known = {(variant, outcome.data) for (variant, _), outcome in outcomes.items() if outcome.data}
    return [variant for variant, count in Counter(variant for variant, _ in known).items() if count > 1]
