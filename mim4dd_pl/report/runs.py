"""A run as it lies on the disk: results, curves, recipe, pictures, diagnostics; each as far as it is there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import parsed_json
from mim4dd_pl.basics.names import DISTILLED, LAST
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.report.curves import Curve, read_curves
from mim4dd_pl.stored.artefact import SHEET, TENSORS

_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """A row of the closing table, as ``results.json`` has it."""

    trained_on: str
    network: str
    images: int
    lr: float
    students: int
    accuracy: float
    std: float
    per_class: list[float | None]  # (C,)
    confusion: list[list[int]]  # (C, C), rows are true classes


@dataclass(frozen=True)
class Fired:
    """A symptom that fired, as ``diagnostics.json`` has it."""

    name: str
    step: int
    value: float
    message: str


@dataclass(frozen=True)
class Run:
    """What a run left behind; what it did not is empty."""

    folder: Path
    name: str  # <recipe>/version_N
    rows: list[Row]  # of the closing table
    facts: dict[str, Any]  # everything else in results.json
    curves: dict[str, Curve]
    recipe: str  # the text of config.yaml
    diagnostics: list[Fired] | None  # None where nobody looked
    classes: tuple[str, ...]  # name of each label
    images: dict[str, bytes]  # PNG files of learned images, by name
    figures: dict[str, bytes]  # PNG files of the analysis, by name
    captions: dict[str, str]  # of the figures

    def row(self, trained_on: str) -> Row | None:
        """The first row whose name begins so; the recipe's own network comes first."""
        return next((row for row in self.rows if row.trained_on.startswith(trained_on)), None)

    @property
    def distilled(self) -> Row | None:
        """The row of the distilled set: of the last step, where there are several."""
        return self.row(LAST) or self.row(DISTILLED)


def read_run(folder: Path) -> Run:
    """Read the folder of a run.

    Raises:
        StoredFileError: If it is none (neither results nor curves), or holds a damaged file.
    """
    run = RunFolder(folder)
    nothing: tuple[list[Row], dict[str, Any]] = ([], {})
    rows, facts = _read(run.results, _results, nothing)
    curves = read_curves(folder)
    if not rows and not curves:
        raise StoredFileError(
            f"{folder} is no run: it has neither results.json nor event files. Give a folder such as "
            "checkpoints/digits/version_0."
        )
    shown = run.distilled("best" if run.distilled("best").is_dir() else "last")
    resolved = RunFolder(folder.resolve())
    return Run(
        folder=folder,
        name=resolved.path.name if resolved.version is None else f"{resolved.path.parent.name}/{resolved.path.name}",
        rows=rows,
        facts=facts,
        curves=curves,
        recipe=_read(run.recipe, _text, ""),
        diagnostics=_read(run.diagnostics, _diagnostics, None),
        classes=_read(shown / TENSORS, _classes, ()),
        images=_pictures([run.comparison, shown / SHEET]),
        figures=_pictures(sorted(run.analysis.glob("*.png"))),
        captions=_read(run.findings, _captions, {}),
    )


def _read(path: Path, parse: Callable[[Path], _T], absent: _T) -> _T:
    """What ``parse`` makes of a file, or ``absent`` without it; a damaged file is refused by name."""
    remedy = "Use another copy, or run the fit again."
    try:
        return parse(path) if path.is_file() else absent
    except OSError as error:
        raise StoredFileError(f"{path} cannot be read ({error}). {remedy}") from error
    except (AttributeError, KeyError, SafetensorError, TypeError, ValueError) as error:
        raise StoredFileError(f"{path} is damaged ({error!r}). {remedy}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    facts = parsed_json(_text(path))
    rows = [Row(**row) for row in facts.pop("test")]
    if not rows or any(len(row.confusion) != len(row.per_class) for row in rows):
        raise ValueError("no rows, or rows without a confusion matrix")
    for row in rows:  # the page computes with these: texts and the like in their place are a TypeError
        shares = [share for share in row.per_class if share is not None]
        sum((row.accuracy, row.std, row.lr, row.images, row.students, *shares, *chain(*row.confusion)))
    for name in ("minutes", "ranking"):
        facts[name] = {key: float(value) for key, value in facts.get(name, {}).items()}
    return rows, facts


def _diagnostics(path: Path) -> list[Fired] | None:
    fired = [Fired(**each) for each in parsed_json(_text(path))]
    sum(each.step for each in fired)  # a TypeError, as above
    return fired


def _captions(path: Path) -> dict[str, str]:
    return {name: str(text) for name, text in parsed_json(_text(path)).get("captions", {}).items()}


def _classes(path: Path) -> tuple[str, ...]:
    with safe_open(path, framework="pt") as file:
        return tuple(map(str, parsed_json(file.metadata()["mim4dd_pl"])["classes"]))


def _pictures(paths: Iterable[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
