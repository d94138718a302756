"""The command: which cells, run or skipped, one line for each, and the table of those that are finished."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mim4dd_pl.basics.errors import Stopped, UserError
from mim4dd_pl.basics.files import locked, write_text
from mim4dd_pl.basics.terminal import OneLineParser, stopped
from mim4dd_pl.callbacks.preemption import answering_signals
from mim4dd_pl.sweep.cells import Cell, cells, mixed, outcomes
from mim4dd_pl.sweep.figure import write_figure
from mim4dd_pl.sweep.plan import Sweep, grid, read_sweep
from mim4dd_pl.sweep.runner import run
from mim4dd_pl.sweep.table import HEADER, Row, cells_csv, markdown, rows, rows_csv


def sweep(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: Command line without ``mim4dd sweep``.

    Returns:
        The exit code: 0 all is finished that was asked for, 1 a cell failed, 130 interrupted, 143 terminated.

    Raises:
        UserError: If the settings are wrong, or a cell is finished with others.
    """
    given = _parser().parse_args(args)
    if given.key is not None:
        plan = grid(given.config, given.key, given.values, given.seeds)
    elif given.values:
        raise UserError("--values needs --key, e.g. --key model.information.weight")
    else:
        plan = read_sweep(given.config[0], given.config[1:], given.seeds)
    out = given.out or Path("checkpoints/sweeps", plan.name)
    every = cells(plan, out)
    if given.cell is not None and not 0 <= given.cell < len(every):
        raise UserError(f"--cell must lie in 0..{len(every) - 1}, got {given.cell}.")
    if given.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {given.jobs}.")
    finished = outcomes(every)
    asked = every if given.cell is None else [every[given.cell]]
    wanted = [cell for cell in asked if (cell.variant.name, cell.seed) not in finished]
    print(f"{plan.name}: {len(asked)} cells, {len(asked) - len(wanted)} of them finished; in {out}", flush=True)
    try:
        with answering_signals():
            failed = _run(plan, out, wanted, given.jobs)
    except Stopped as stop:
        return stopped(stop.number, "the same command goes on")
    table = Table(*HEADER, title="Test accuracy of fresh students, mean +- std (seeds)")
    for row in _write(plan, out):
        table.add_row(*row.texts())
    Console().print(table)
    print(f"{'results':<12} {out}/results.csv, cells.csv, results.md, figure.png")
    found = outcomes(every)
    if odd := mixed(found):
        print(f"other data   {', '.join(odd)}: these seeds were distilled from different training images")
    if missing := [str(cell) for cell in every if (cell.variant.name, cell.seed) not in found]:
        print(f"missing      {len(missing)} of {len(every)}: {'; '.join(missing)}")
    return 1 if failed else 0


def _run(plan: Sweep, out: Path, wanted: Sequence[Cell], jobs: int) -> int:
    """Run cells, a line and a new table for each; returns how many failed."""
    failed, minutes = 0, 0.0
    with closing(run(wanted, jobs)) as ended:
        for number, end in enumerate(ended, start=1):
            failed += end.error is not None
            minutes += end.minutes
            left = minutes / number * (len(wanted) - number) / jobs
            outcome = end.cell.outcome() if end.error is None else None
            said = f"failed: {end.error} (see {end.cell.log})" if outcome is None else f"{100 * outcome.last:.2f} %"
            line = f"{number}/{len(wanted)}  {end.cell}: {said}, {end.minutes:.1f} min, {left:.0f} min left"
            print(line, flush=True)
            _write(plan, out)
    return failed


def _write(plan: Sweep, out: Path) -> list[Row]:
    """The tables and the figure of whatever is finished; one process at a time."""
    with locked(out, "summary"):
        found = outcomes(cells(plan, out))
        made = rows(plan, found)
        write_text(out / "results.csv", rows_csv(made))
        write_text(out / "cells.csv", cells_csv(found))
        write_text(out / "results.md", markdown(made))
        write_figure(out / "figure.png", plan.name, made)
    return made


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mim4dd sweep",
        allow_abbrev=False,
        description="Variants of a recipe x seeds: each cell is one `mim4dd fit` in a folder of its own. Finished "
        "cells are skipped, unfinished ones go on, so the same command resumes a sweep. Ends with accuracies over the "
        "seeds and paired differences, as a table, CSV, Markdown and a figure.",
        epilog="mim4dd sweep -c configs/sweeps/lambda.yaml | mim4dd sweep -c RECIPE -c OVERLAY --key "
        "model.information.weight --values 0 0.2 0.4 --seeds 0 1 2",
    )
    add: Any = parser.add_argument
    files = "A sweep file, then overlays for all of its variants; with --key a recipe, then its overlays."
    add("-c", "--config", action="append", required=True, type=Path, metavar="FILE", help=files)
    add("--key", help="The key that differs, as on the command line of fit.")
    add("--values", nargs="+", default=[], help="Its values; the first is what the others are compared with.")
    add("--seeds", nargs="+", type=int, default=[], help="Seeds of every variant; by default those of the sweep file.")
    add("--out", type=Path, metavar="DIR", help="Its folder; checkpoints/sweeps/NAME by default.")
    add("--jobs", type=int, default=1, help="Cells at a time; each takes the recipe's threads.")
    add("--cell", type=int, metavar="I", help="One cell only, from 0: for array jobs, e.g. $SLURM_ARRAY_TASK_ID.")
    return parser
