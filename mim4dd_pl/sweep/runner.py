"""Cells as processes: some at a time, the rest after them; none outlives the sweep."""

import subprocess
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import NamedTuple

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import locked
from mim4dd_pl.sweep.cells import Cell

_GRACE = 10.0
"""Seconds that a run has to end by itself; what it leaves is whole whenever it dies."""

_POLL = 0.1
"""Seconds between two looks at a process, or at a lock that somebody else holds."""


class Ended(NamedTuple):
    """A cell that is done, its minutes in this sweep, and why it failed; None if it did not."""

    cell: Cell
    minutes: float
    error: str | None


def run(cells: Sequence[Cell], jobs: int) -> Generator[Ended, None, None]:
    """Run the cells that are not finished, ``jobs`` at a time, and tell of each when it ends.

    Closing the iterator ends the processes that still run. A cell that another process runs is waited for.
    """
    stop = Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(_run, cell, stop) for cell in cells]):
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _run(cell: Cell, stop: Event) -> Ended:
    """Run a cell under its lock; once ``stop`` is set, end its process and wait for nothing more."""
    begun, error = time.monotonic(), None
    while not stop.is_set():
        try:
            with locked(cell.folder.parent, cell.folder.name, waits=False):
                error = _failure(cell, stop)
                break
        except BlockingIOError:
            stop.wait(_POLL)
    return Ended(cell, (time.monotonic() - begun) / 60, error)


def _failure(cell: Cell, stop: Event) -> str | None:
    """Run a cell if it is not finished; why it failed, or None if it did not."""
    if cell.outcome() is None and (code := _process(cell, stop)):
        return _last_line(cell.log) or f"exit code {code}"
    try:
        return "left no results.json: the recipe needs a ClosingTable." if cell.outcome() is None else None
    except StoredFileError as unreadable:
        return str(unreadable)


def _process(cell: Cell, stop: Event) -> int:
    """The exit code of the process of a cell, which is terminated, and killed if need be, once ``stop`` is set."""
    command = cell.begin()
    with cell.log.open("ab") as log:
        # A session of its own: Ctrl-C is the sweep's, which ends its cells.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    while process.poll() is None and not stop.wait(_POLL):
        pass
    if process.returncode is None:
        process.terminate()
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("mim4dd: error: ") if lines else ""
