"""From the outcomes of cells to rows: accuracy over seeds, and the paired difference to a reference."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

from mim4dd_pl.population.comparison import PairedDifference, paired_difference, sample_std
from mim4dd_pl.sweep.cells import Outcome
from mim4dd_pl.sweep.plan import Sweep

HEADER = ("variant", "test accuracy, %", "against", "difference, points [95 %]", "minutes")

_COLUMNS = (
    *("variant", "seeds", "accuracy_fraction", "std_fraction", "compared_with", "pairs", "difference_fraction"),
    *("standard_error_fraction", "low_95_fraction", "high_95_fraction", "minutes_without_experts"),
)


@dataclass(frozen=True)
class Row:
    """A variant over its finished seeds.

    Args:
        variant: Its name.
        accuracies: Last test accuracy of each seed, as fractions.
        against: The variant that it is compared with, if any.
        difference: Paired over the seeds that both have; None without a pair.
        minutes: Mean of its runs, without the experts, which they share; None without a run.
    """

    variant: str
    accuracies: tuple[float, ...]
    against: str | None
    difference: PairedDifference | None
    minutes: float | None

    def texts(self) -> tuple[str, ...]:
        """Under :data:`HEADER`; accuracies in percent, mean +- std (n)."""
        accuracy = difference = ""
        if self.accuracies:
            std = sample_std(self.accuracies)
            spread = "" if std is None else f" +- {100 * std:.1f}"
            accuracy = f"{100 * fmean(self.accuracies):.1f}{spread} ({len(self.accuracies)})"
        if found := self.difference:
            low, high = found.low, found.high
            ends = "" if low is None or high is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
            difference = f"{100 * found.mean:+.2f}{ends} ({found.n})"
        minutes = "" if self.minutes is None else f"{self.minutes:.1f}"
        return self.variant, accuracy, self.against or "", difference, minutes


def rows(sweep: Sweep, outcomes: Mapping[tuple[str, int], Outcome]) -> list[Row]:
    """One for each variant; ``outcomes`` are those of the finished cells, by variant and seed."""
    last: dict[tuple[str | None, int], float] = {key: outcome.last for key, outcome in outcomes.items()}
    made = []
    for name, against in ((variant.name, variant.against) for variant in sweep.variants):
        seeds = [seed for seed in sweep.seeds if (name, seed) in last]
        paired = [seed for seed in seeds if (against, seed) in last]
        difference = paired_difference([last[name, n] for n in paired], [last[against, n] for n in paired])
        minutes = fmean(outcomes[name, seed].own_minutes for seed in seeds) if seeds else None
        made.append(Row(name, tuple(last[name, seed] for seed in seeds), against, difference, minutes))
    return made


def rows_csv(rows: Sequence[Row]) -> str:
    """One line for each variant; a number that so few seeds do not give is empty."""
    lines = []
    for row in rows:
        accuracy = fmean(row.accuracies) if row.accuracies else None
        difference = (None,) * 5 if row.difference is None else astuple(row.difference)
        own = (row.variant, len(row.accuracies), accuracy, sample_std(row.accuracies), row.against)
        lines.append(dict(zip(_COLUMNS, (*own, *difference, row.minutes), strict=True)))
    return _csv(lines)


def cells_csv(outcomes: Mapping[tuple[str, int], Outcome]) -> str:
    """One line for each finished cell."""
    lines = [
        {
            "variant": variant,
            "seed": seed,
            "accuracy_last_fraction": outcome.last,
            "accuracy_best_fraction": outcome.best,
            "std_over_students_fraction": outcome.std,
            **{f"minutes_{stage.replace(' ', '_')}": minutes for stage, minutes in outcome.minutes.items()},
        }
        for (variant, seed), outcome in outcomes.items()
    ]
    return _csv(lines)


def markdown(rows: Sequence[Row]) -> str:
    """A table to paste."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.texts() for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in line.items()})
    return text.getvalue()
