"""What a page says about runs, as parts that HTML and Markdown share."""

from collections.abc import Sequence
from functools import partial

from mim4dd_pl.basics.names import RANDOM, WHOLE
from mim4dd_pl.report.drawing import colour, draw_confusion, draw_panel
from mim4dd_pl.report.panels import panels
from mim4dd_pl.report.parts import Bullets, Drawing, Folded, Gallery, Key, Listing, Part, Picture, Section, Table, Text
from mim4dd_pl.report.runs import Row, Run

MOST_CLASSES = 20  # a longer table of classes is folded
_NUMBERS = {"test", "ranking", "minutes"}  # what results.json holds besides facts
_CAPTIONS = {
    "comparison.png": "The first learned image of up to ten classes, above a random real one of each.",
    "sheet.png": "Learned images as 8-bit pictures: a class a row, or ten classes a row with one image of each.",
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """The page: of one run, or a comparison followed by each."""
    if len(runs) == 1:
        return [Section(f"Run {runs[0].name}", 1, [Text(headline(runs[0]))]), *_of_run(runs[0], 2, curves=True)]
    both = [Section(f"{len(runs)} runs", 1), Section("Comparison", 2, [comparison(runs)])]
    key = Key([(colour(number), run.name) for number, run in enumerate(runs)])
    drawn = _curves(runs)
    if drawn:
        both.append(Section("Curves", 2, [key, *drawn]))
    for run in runs:
        both += [Section(f"Run {run.name}", 2, [Text(headline(run))]), *_of_run(run, 3, curves=False)]
    return both


def headline(run: Run) -> str:
    """One sentence: what was learned, and what it is worth."""
    distilled, random = run.distilled, run.row(RANDOM)
    if not run.finished:
        steps = max((curve.steps[-1] for curve in run.curves.values() if curve.steps), default=0)
        return f"Unfinished: there are curves up to outer step {steps:,}, and no closing table yet."
    if distilled is None:
        return "The closing table has no distilled set."
    what = f"{run.facts.get('data set', 'images')}, {_per_class(distilled)} per class"
    control = "" if random is None else f"; on as many random real images: {_accuracy(random)}"
    return f"{what}: {_accuracy(distilled)} test accuracy of {distilled.students} fresh students{control}."


def comparison(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    header = (
        "run",
        "distilled, %",
        "random real, %",
        "whole set, %",
        "symptoms",
        "minutes",
        "images per class",
        "data",
    )
    rows = []
    for run in runs:
        distilled = run.distilled
        scores = [distilled, run.row(RANDOM), run.row(WHOLE)]
        rows.append(
            (
                run.name,
                *("-" if score is None else _accuracy(score, unit="") for score in scores),
                "-" if run.diagnostics is None else str(len(run.diagnostics)),
                f"{sum(run.facts['minutes'].values()):.1f}" if run.facts.get("minutes") else "-",
                "-" if distilled is None else f"{distilled.images / len(distilled.per_class):g}",
                str(run.facts.get("data set", "-")),
            )
        )
    return Table(header, rows)


def _of_run(run: Run, level: int, curves: bool) -> list[Section]:
    found: list[tuple[str, list[Part]]] = [
        ("Accuracy", _accuracies(run)),
        ("Diagnostics", [diagnostics(run)]),
        ("Curves", _curves([run]) if curves else []),
        (
            "Images",
            [Picture(png, _CAPTIONS[name]) for path, png in run.pictures.items() if (name := _last(path)) in _CAPTIONS],
        ),
        (
            "Analysis",
            [
                Picture(png, run.captions.get(path, _last(path)))
                for path, png in run.pictures.items()
                if "analysis/" in path
            ],
        ),
        ("Classes", _classes(run)),
        ("Recipe and run", _about(run)),
    ]
    return [Section(title, level, parts) for title, parts in found if parts]


def _accuracies(run: Run) -> list[Part]:
    networks = {row.network for row in run.rows}
    header = ("trained on", *(["network"] if len(networks) > 1 else []), "accuracy, %", "images", "lr", "students")
    rows = [
        (
            row.trained_on,
            *([row.network.partition("(")[0]] if len(networks) > 1 else []),
            _accuracy(row, unit=""),
            f"{row.images:,}",
            f"{row.lr:.3g}",
            str(row.students),
        )
        for row in run.rows
    ]
    parts: list[Part] = [Table(header, rows)] if rows else []
    if ranking := run.facts.get("ranking"):
        values = ", ".join(f"{name} {value:.3f}" for name, value in ranking.items())
        parts.append(
            Text(
                f"DD-Ranking: {values} (HLR: lost against the whole set, lower is better; IOR: gained over random real "
                "images, and LRS, both in one number: higher is better)."
            )
        )
    return parts


def diagnostics(run: Run) -> Part:
    """The symptoms that fired, or that none did."""
    if run.diagnostics is None:
        return Text("Nobody looked: the recipe has no Diagnostics callback.")
    if not run.diagnostics:
        return Text("No symptom fired.")
    return Bullets([(f"{each.name}, step {each.step:,}:", each.message) for each in run.diagnostics])


def _curves(runs: Sequence[Run]) -> list[Part]:
    drawings = [Drawing(partial(draw_panel, panel), panel.caption) for panel in panels([run.curves for run in runs])]
    return [Gallery(drawings)] if drawings else []


def _classes(run: Run) -> list[Part]:
    row = run.distilled
    if row is None:
        return []
    names = run.classes if len(run.classes) == len(row.per_class) else tuple(map(str, range(len(row.per_class))))
    table = Table(
        ("class", "accuracy, %"),
        [
            (name, "-" if share is None else f"{100 * share:.1f}")
            for name, share in zip(names, row.per_class, strict=True)
        ],
    )
    caption = f"Answers of students trained on: {row.trained_on}. Rows are true classes, in percent of their images."
    matrix = Drawing(partial(draw_confusion, row.confusion, names), caption)
    return [Gallery([matrix, table if len(names) <= MOST_CLASSES else Folded("Accuracy of each class", table)])]


def _about(run: Run) -> list[Part]:
    facts = [(name, str(value)) for name, value in run.facts.items() if name not in _NUMBERS]
    if minutes := run.facts.get("minutes"):
        parts = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
        facts.append(("minutes", f"{sum(minutes.values()):.1f} ({parts})"))
    facts.append(("folder", str(run.folder)))
    recipe = [] if run.recipe is None else [Folded("config.yaml", Listing(run.recipe))]
    return [Table(("", ""), facts, prose=True), *recipe]


def _accuracy(row: Row, unit: str = " %") -> str:
    return f"{100 * row.accuracy:.1f} ± {100 * row.std:.1f}{unit}"


def _per_class(row: Row) -> str:
    count = row.images / len(row.per_class)
    return f"{count:g} image{'' if count == 1 else 's'}"


def _last(path: str) -> str:
    return path.rpartition("/")[2]
