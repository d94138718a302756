"""What there is to say about runs, in words and tables; the templates put it in its place."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mim4dd_pl.basics.names import RANDOM, WHOLE
from mim4dd_pl.report.runs import Row, Run

_CAPTIONS = {
    "comparison.png": "The first learned image of up to ten classes, above a random real one of each.",
    "sheet.png": "Learned images as 8-bit pictures: a class a row, or ten classes a row with one image of each.",
}


class Table(NamedTuple):
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def headline(run: Run) -> str:
    """One sentence: what was learned, and what it is worth."""
    distilled, random = run.distilled, run.row(RANDOM)
    if not run.rows:
        steps = max((curve.steps[-1] for curve in run.curves.values() if curve.steps), default=0)
        return f"Unfinished: there are curves up to outer step {steps:,}, and no closing table yet."
    if distilled is None:
        return "The closing table has no distilled set."
    count = _per_class(distilled)
    what = f"{run.facts.get('data set', 'images')}, {count} image{'' if count == '1' else 's'} per class"
    control = "" if random is None else f"; on as many random real images: {_percent(random)} %"
    return f"{what}: {_percent(distilled)} % test accuracy of {distilled.students} fresh students{control}."


def comparison(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    scores = ("distilled, %", "random real, %", "whole set, %")
    rows = [
        (
            run.name,
            *map(_percent, (run.distilled, run.row(RANDOM), run.row(WHOLE))),
            "-" if run.diagnostics is None else str(len(run.diagnostics)),
            f"{sum(run.facts['minutes'].values()):.1f}" if run.facts.get("minutes") else "-",
            "-" if run.distilled is None else _per_class(run.distilled),
            str(run.facts.get("data set", "-")),
        )
        for run in runs
    ]
    return Table(("run", *scores, "symptoms", "minutes", "images per class", "data"), rows)


def accuracies(run: Run) -> Table:
    """The closing table; networks are named where there are several."""
    columns: dict[str, Callable[[Row], str]] = {
        "trained on": lambda row: row.trained_on,
        "network": lambda row: row.network.partition("(")[0],
        "accuracy, %": _percent,
        "images": lambda row: f"{row.images:,}",
        "lr": lambda row: f"{row.lr:.3g}",
        "students": lambda row: str(row.students),
    }
    if len({row.network for row in run.rows}) < 2:
        del columns["network"]
    return Table(list(columns), [[say(row) for say in columns.values()] for row in run.rows])


def ranking(run: Run) -> str:
    """The numbers of DD-Ranking and how to read them; empty without."""
    values = ", ".join(f"{name} {value:.3f}" for name, value in run.facts.get("ranking", {}).items())
    how = "HLR: lost against the whole set, lower is better; IOR: gained over random real images, and LRS, both in one"
    return f"DD-Ranking: {values} ({how} number: higher is better)." if values else ""


def silence(run: Run) -> str:
    """Why there is no symptom."""
    if run.diagnostics is None:
        return "Nobody looked: the recipe has no Diagnostics callback."
    return "No symptom fired."


def pictures(run: Run) -> dict[str, list[tuple[str, bytes]]]:
    """Captions with PNG files, by the title above them."""
    return {
        "Images": [(_CAPTIONS[name], png) for name, png in run.images.items()],
        "Analysis": [(run.captions.get(name, name), png) for name, png in run.figures.items()],
    }


def classes(run: Run) -> Table:
    """The accuracy of each class after training on the distilled set; no rows without one."""
    shares = [] if run.distilled is None else run.distilled.per_class
    names = run.classes if len(run.classes) == len(shares) else map(str, range(len(shares)))
    percents = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    return Table(("class", "accuracy, %"), list(zip(names, percents, strict=True)))


def facts(run: Run) -> Table:
    """Data, settings, machine, minutes."""
    rows = [(name, str(value)) for name, value in run.facts.items() if name not in ("ranking", "minutes")]
    if minutes := run.facts.get("minutes"):
        parts = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
        rows.append(("minutes", f"{sum(minutes.values()):.1f} ({parts})"))
    return Table(("", ""), [*rows, ("folder", str(run.folder))])


def _percent(row: Row | None) -> str:
    return "-" if row is None else f"{100 * row.accuracy:.1f} ± {100 * row.std:.1f}"


def _per_class(row: Row) -> str:
    return f"{row.images / len(row.per_class):g}"
