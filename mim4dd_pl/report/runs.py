"""A run as it lies on the disk: results, curves, recipe, pictures, diagnostics; each as far as it is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import parsed_json
from mim4dd_pl.basics.names import DISTILLED, LAST
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.report.curves import Curve, read_curves
from mim4dd_pl.stored.artefact import SHEET, TENSORS

_REMEDY = "Use another copy, or run the fit again."


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
    """What a run left behind.

    Args:
        folder: Where.
        name: What to call it: ``<recipe>/version_N``.
        rows: Of the closing table; empty for an unfinished run.
        facts: Everything else in ``results.json``.
        curves: By name.
        recipe: The text of ``config.yaml``, if it is there.
        diagnostics: Symptoms that fired; None where nobody looked.
        classes: Name of each label, empty if unknown.
        pictures: PNG files by their path in the folder.
        captions: Of the pictures, by the same.
    """

    folder: Path
    name: str
    rows: list[Row]
    facts: dict[str, Any]
    curves: dict[str, Curve]
    recipe: str | None
    diagnostics: list[Fired] | None
    classes: tuple[str, ...]
    pictures: dict[str, bytes]
    captions: dict[str, str]

    @property
    def finished(self) -> bool:
        """Whether it has a closing table."""
        return bool(self.rows)

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
    results = _results((run := RunFolder(folder)).results)
    curves = read_curves(folder)
    if results is None and not curves:
        raise StoredFileError(
            f"{folder} is no run: it has neither results.json nor event files. Give a folder such as "
            "checkpoints/digits/version_0."
        )
    rows, facts = results or ([], {})
    shown = run.distilled("best" if run.distilled("best").is_dir() else "last")
    resolved = RunFolder(folder.resolve())
    return Run(
        folder=folder,
        name=resolved.path.name if resolved.version is None else f"{resolved.path.parent.name}/{resolved.path.name}",
        rows=rows,
        facts=facts,
        curves=curves,
        recipe=_text(run.recipe),
        diagnostics=_diagnostics(run.diagnostics),
        classes=_classes(shown / TENSORS),
        pictures={
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in (run.comparison, shown / SHEET, *sorted(run.analysis.glob("*.png")))
            if path.is_file()
        },
        captions=_captions(run.findings),
    )


def _results(path: Path) -> tuple[list[Row], dict[str, Any]] | None:
    content = _json(path)
    if content is None:
        return None
    try:
        rows = [Row(**row) for row in content.pop("test")]
        if not rows or any(len(row.confusion) != len(row.per_class) for row in rows):
            raise ValueError("no rows, or rows without a confusion matrix")
        # Numbers are formatted on the page: a text in their place is damage too.
        for row in rows:
            (float(row.accuracy), float(row.std), float(row.lr), int(row.images), int(row.students))
        for name in ("minutes", "ranking"):
            content[name] = {key: float(value) for key, value in content.get(name, {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoredFileError(f"{path} is damaged ({error!r}). {_REMEDY}") from error
    return rows, content


def _diagnostics(path: Path) -> list[Fired] | None:
    content = _json(path)
    try:
        return None if content is None else [Fired(**each) for each in content]
    except TypeError as error:
        raise StoredFileError(f"{path} is damaged ({error!r}). {_REMEDY}") from error


def _captions(path: Path) -> dict[str, str]:
    content = _json(path)
    try:
        return {f"analysis/{name}": str(text) for name, text in (content or {}).get("captions", {}).items()}
    except AttributeError as error:
        raise StoredFileError(f"{path} is damaged ({error!r}). {_REMEDY}") from error


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(map(str, parsed_json(file.metadata()["mim4dd_pl"])["classes"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StoredFileError(f"{path} is damaged ({error!r}). {_REMEDY}") from error


def _json(path: Path) -> Any:
    """What the file holds, None if it is not there."""
    text = _text(path)
    try:
        return None if text is None else parsed_json(text)
    except ValueError as error:
        raise StoredFileError(f"{path} is damaged ({error}). {_REMEDY}") from error


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoredFileError(f"{path} cannot be read ({error}). {_REMEDY}") from error
