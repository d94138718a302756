"""Rows of the published table, from nothing: experts, distillation, evaluation; published beside measured.

    python -m benchmarks.table --minutes 30
    python -m benchmarks.table --render

A row is a variant of a sweep file, a run one seed of it: one ``mim4dd fit`` in a folder of its own. Runs start as long
as there is time; the one at hand when it is up keeps its step and ends, and the same command goes on with it. Each
finished run is kept in ``benchmarks/tables/rows/ROW.json``, and what is there is not run again. ``--render`` makes the
table in ``docs/results.md`` from these files.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

from benchmarks.rendering import rendered
from benchmarks.rows import FOLDER, ROOT, add_run, read_row
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.files import write_text
from mim4dd_pl.basics.terminal import OneLineParser, fail
from mim4dd_pl.sweep.cells import Cell, cells
from mim4dd_pl.sweep.plan import read_sweep
from mim4dd_pl.sweep.runner import run

TABLES = (FOLDER / "cifar.yaml", FOLDER / "digits.yaml")
DOCS = ROOT / "docs/results.md"


class _Stopped(Exception):
    """The time is up, or SIGTERM came."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done or out of time, 1 a run failed, 2 wrong setting."""
    try:
        given = _parser().parse_args(args)
        if given.render:
            write_text(DOCS, rendered(DOCS.read_text(encoding="utf-8"), TABLES, given.results))
            return 0
        return _measure(given)
    except UserError as error:
        return fail(str(error), error.exit_code)


def _measure(given: argparse.Namespace) -> int:
    plan = read_sweep(given.table, given.config, given.seeds)
    names = [variant.name for variant in plan.variants]
    if unknown := set(given.rows) - set(names):
        raise UserError(f"--rows must be out of {', '.join(names)}; got {', '.join(sorted(unknown))}.")
    known = {
        variant.name: {each["seed"] for each in read_row(given.results, variant)["runs"]} for variant in plan.variants
    }
    asked = [cell for cell in cells(plan, given.out) if cell.variant.name in (given.rows or names)]
    wanted = [cell for cell in asked if cell.seed not in known[cell.variant.name]]
    print(f"{plan.name}: {len(asked)} runs, {len(asked) - len(wanted)} of them measured", flush=True)
    failed, left = 0, len(wanted)
    try:
        with _stopping_after(given.minutes), closing(run(wanted, jobs=1)) as ended:
            for end in ended:
                left -= 1
                failed += end.error is not None
                said = f"failed: {end.error} (see {end.cell.log})" if end.error else _kept(given.results, end.cell)
                print(f"{end.cell}: {said}, {end.minutes:.1f} min", flush=True)
    except (_Stopped, KeyboardInterrupt):
        print(f"stopped with {left} runs to go; the same command goes on", flush=True)
    return 1 if failed else 0


def _kept(results: Path, cell: Cell) -> str:
    add_run(results, cell)
    outcome = cell.outcome()
    assert outcome is not None
    return f"{100 * outcome.last:.2f} %"


@contextmanager
def _stopping_after(minutes: float | None) -> Iterator[None]:
    """Within the block SIGTERM and the end of the time raise, so that the run at hand is ended and not left behind."""

    def stop(*_: object) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0.0))  # 0 is no end
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.table", allow_abbrev=False, description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("table", nargs="?", type=Path, default=TABLES[0], help="a sweep file whose variants are the rows")
    add("-c", "--config", action="append", type=Path, default=[], metavar="FILE", help="overlays for all rows")
    add("--rows", nargs="+", default=[], help="these rows only")
    add("--seeds", nargs="+", type=int, default=[], help="in place of the table's")
    add("--minutes", type=float, help="end by then, to go on another time; all rows by default")
    add("--out", type=Path, default=Path("checkpoints/table"), metavar="DIR", help="folder of the runs")
    add("--results", type=Path, default=FOLDER / "rows", metavar="DIR", help="folder of the rows' JSON files")
    add("--render", action="store_true", help="only make the table of docs/results.md from the JSON files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
