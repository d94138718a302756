"""Published beside measured: rows as a Markdown table, between two comment lines of a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import PUBLISHED, load_row, said_of
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.yamls import read_mapping
from mim4dd_pl.sweep.cells import Outcome
from mim4dd_pl.sweep.plan import read_sweep
from mim4dd_pl.sweep.table import rows

BEGIN, END = "<!-- python -m benchmarks.table --render -->\n", "<!-- end of the table -->\n"
HEADER = (
    "data",
    "ipc",
    "method",
    "published",
    "measured (seeds)",
    "difference, points [95 %]",
    "minutes",
    "GiB",
    "unlike the paper",
    "made by",
)


def rendered(text: str, tables: Sequence[Path], results: Path) -> str:
    """``text`` with the table between its two comment lines made anew.

    Args:
        text: Of a Markdown file.
        tables: Sweep files, whose variants are the rows.
        results: Folder of the rows' JSON files.

    Raises:
        UserError: If the text lacks the two lines.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"The text has no lines {BEGIN.strip()} and {END.strip()} to put the table between.")
    return f"{before}{begin}{markdown(tables, results)}{end}{after}"


def markdown(tables: Sequence[Path], results: Path) -> str:
    """All rows of ``tables``, also those of which nothing is measured."""
    published = read_mapping(PUBLISHED)
    lines: list[Sequence[str]] = [HEADER, ("---",) * len(HEADER)]
    for table in tables:
        plan = read_sweep(table)
        measured = {variant.name: load_row(results, variant) for variant in plan.variants}
        outcomes = {(name, run["seed"]): _outcome(run) for name, row in measured.items() for run in row["runs"]}
        for variant, row in zip(plan.variants, rows(plan, outcomes), strict=True):
            about = published["rows"].get(variant.name, {"data": variant.name})
            head = [str(about.get(key, "")) for key in ("data", "ipc", "method")]
            theirs = f"{about['accuracy']} +- {about['std']}" if "accuracy" in about else "none"
            wanted = published["methods"][about["method"]]["settings"] if "accuracy" in about else {}
            found = measured[variant.name]
            extra = [path for path in found["recipe"] if path not in said_of(variant)["recipe"]]
            cells = _measured(found, row.texts(), wanted, extra) if found["runs"] else ["not measured", *[""] * 5]
            lines.append([*head, theirs, *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _measured(row: dict[str, Any], texts: Sequence[str], wanted: dict[str, Any], extra: Sequence[str]) -> list[str]:
    """The cells of a row that was measured; a single seed has the std of its students."""
    runs = row["runs"]
    _, accuracy, _, difference, own_minutes = texts
    if len(runs) == 1:
        accuracy = f"{100 * runs[0]['accuracy']:.1f} +- {100 * runs[0]['std_over_students']:.1f} (1)"
    experts = max(run["minutes"]["experts"] for run in runs)  # the first run trains them
    unlike = [
        f"{key.partition('.')[2].removesuffix('.class_path')} {row['settings'].get(key)} ({theirs})"
        for key, theirs in wanted.items()
        if row["settings"].get(key) != theirs
    ]
    made_by = dict.fromkeys(f"{run['machine']}; commit {run['commit']}; {run['versions']}" for run in runs)
    memory = max(run["peak_memory_gib"] for run in runs)
    return [
        accuracy,
        difference,
        f"{own_minutes} + {experts:.1f}",
        f"{memory:.1f}",
        ", ".join([*unlike, *extra]),
        " / ".join(made_by),
    ]


def _outcome(run: dict[str, Any]) -> Outcome:
    return Outcome(run["accuracy"], run["accuracy_of_best_step"], run["std_over_students"], run["minutes"])
