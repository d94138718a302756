"""Rows of a table: what their runs gave, one JSON file for each."""

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.files import write_text
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.basics.yamls import dotted, read_mapping
from mim4dd_pl.population.comparison import sample_std
from mim4dd_pl.sweep.cells import Cell
from mim4dd_pl.sweep.plan import Variant

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks/tables"
PUBLISHED = FOLDER / "published.yaml"


def read_row(results: Path, variant: Variant) -> dict[str, Any]:
    """What is measured of a row with its recipe.

    Raises:
        UserError: If it was measured with another recipe or other overrides.
    """
    row = load_row(results, variant)
    for key, now in said_of(variant).items():
        if (then := row[key]) != now:
            where = results / f"{variant.name}.json"
            raise UserError(f"{where} was measured with {key} {then}, expected {now}: remove it to measure anew.")
    return row


def add_run(results: Path, cell: Cell) -> None:
    """Keep what a finished cell gave in the file of its row, beside the runs with other seeds."""
    run, outcome = cell.finished_run(), cell.outcome()
    assert run is not None
    assert outcome is not None
    content = json.loads(run.results.read_text(encoding="utf-8"))
    row = read_row(results, cell.variant)
    made = {
        "seed": cell.seed,
        "accuracy": outcome.last,
        "std_over_students": outcome.std,
        "accuracy_of_best_step": outcome.best,
        "students": content["test"][0]["students"],
        "minutes": outcome.minutes,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        **{key: content[key] for key in ("peak_memory_gib", "machine", "versions")},
    }
    runs = [each for each in row["runs"] if each["seed"] != cell.seed] + [made]
    runs.sort(key=lambda each: each["seed"])
    accuracies = [each["accuracy"] for each in runs]
    row |= {
        "accuracy": fmean(accuracies),
        "std_over_seeds": sample_std(accuracies),
        "settings": _settings(run),
        "runs": runs,
    }
    write_text(results / f"{cell.variant.name}.json", json.dumps(row, indent=2) + "\n")


def load_row(results: Path, variant: Variant) -> dict[str, Any]:
    """What is measured of a row so far, with whatever recipe; no runs if nothing is."""
    path = results / f"{variant.name}.json"
    if not path.is_file():
        return {**said_of(variant), "runs": []}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def said_of(variant: Variant) -> dict[str, Any]:
    """What a row's file says of how its runs are made."""
    recipe = [os.path.relpath(path, ROOT) for path in variant.recipe]
    return {"row": variant.name, "recipe": recipe, "overrides": variant.settings}


def _settings(run: RunFolder) -> dict[str, Any]:
    """What a run was made with, as far as published settings speak of it; classes by their short names."""
    ours = {key.replace(".init_args", ""): value for key, value in dotted(read_mapping(run.recipe)).items()}
    methods = read_mapping(PUBLISHED)["methods"].values()
    keys = dict.fromkeys(key for method in methods for key in method["settings"])
    known = {key: ours[key] for key in keys if key in ours}
    return {key: value.rpartition(".")[2] if key.endswith("class_path") else value for key, value in known.items()}


def _commit() -> str:
    """The version of the code at hand, as git knows it."""
    commands = (("describe", "--always"), ("status", "--porcelain", "--", "mim4dd_pl", "configs"))
    try:
        tree, changes = (
            subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{tree} with changes" if changes else tree
