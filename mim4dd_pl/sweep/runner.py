"""Cells as processes: some at a time, the rest after them; none outlives the sweep."""

import subprocess
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import locked
from mim4dd_pl.sweep.cells import Cell

_GRACE = 10.0
"""Seconds that a run has to end by itself; what it leaves is whole whenever it dies."""


class Ended(NamedTuple):
    """A cell that is done, its minutes in this sweep, and why it failed; None if it did not."""

    cell: Cell
    minutes: float
    error: str | None


def run(cells: Sequence[Cell], jobs: int) -> Generator[Ended, None, None]:
    """Run the cells that are not finished, ``jobs`` at a time, and tell of each when it ends.

    Closing the iterator ends the processes that still run. A cell that another process runs is waited for.
    """
    waiting, running = deque(cells), list[_Process]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Process(waiting.popleft()))
            ended = [process for process in running if process.ended()]
            running = [process for process in running if process not in ended]
            yield from [process.close() for process in ended]
            time.sleep(0.0 if ended else 0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


class _Process:
    """The process of a cell, which holds the cell's lock."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.process: subprocess.Popen[bytes] | None = None
        self._begun = time.monotonic()
        with ExitStack() as held:
            held.enter_context(locked(cell.folder.parent, cell.folder.name))
            if cell.outcome() is None:  # else somebody was faster
                command = cell.begin()
                with cell.log.open("ab") as log:
                    # A session of its own: Ctrl-C is the sweep's, which ends its cells.
                    self.process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
            self._held = held.pop_all()

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def close(self) -> Ended:
        self._held.close()
        error = None
        if self.process is not None and self.process.returncode:
            error = _last_line(self.cell.log) or f"exit code {self.process.returncode}"
        try:
            if error is None and self.cell.outcome() is None:
                error = "left no results.json: the recipe needs a ClosingTable."
        except StoredFileError as unreadable:
            error = str(unreadable)
        return Ended(self.cell, (time.monotonic() - self._begun) / 60, error)

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self) -> None:
        """For a terminated process; one that does not end by itself is killed."""
        if self.process is not None:
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._held.close()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("mim4dd: error: ") if lines else ""
