"""Runs that are killed, terminated and damaged at random: what was lost?

    python -m benchmarks.reliability

Prints a table of what was tried and how often something was wrong, and ends with 1 if anything was. Runs are of the
digits with the information term and learned labels, 24 outer steps, a checkpoint every 3, an evaluation every 8.
"""

import argparse
import io
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import rig
from benchmarks.victims import EVERY, Run, same
from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from mim4dd_pl.stored.artefact import read_distilled
from mim4dd_pl.stored.trajectories import TrajectoryStore


def signals(
    number: signal.Signals, times: int, chance: random.Random, folder: Path, processes: int = 1
) -> Iterator[tuple[Run, int, int]]:
    """Runs that get a signal at a random moment, go on and get it again, until they end; so many ``times`` in all.

    Yields:
        A run after each signal, its exit code and the most steps that it had made before; at the end of a run 0.
    """
    whole = Run(folder / "whole", processes)
    whole.begin().join()
    seconds, expected = time.monotonic() - whole.begun, whole.outcome()
    sent = attempt = 0
    while sent < times:
        run, made, code = Run(folder / f"run_{attempt}", processes), 0, -1
        while code != 0:
            process = run.begin()
            process.join(chance.uniform(0, seconds) if sent < times else None)
            if process.exitcode is None:
                os.kill(process.pid or 0, number)
                process.join()
                sent += 1
            code = process.exitcode if process.exitcode is not None else -1
            made = max(made, run.steps())
            yield run, code, made
        if not same(run.outcome(), expected):
            raise AssertionError(f"{run.folder} ended with other bits")
        shutil.rmtree(run.folder)
        attempt += 1


def kills(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Kill -9 at random moments."""
    count: Counter[str] = Counter()
    for run, code, made in signals(signal.SIGKILL, times, chance, folder):
        if code == 0:
            count["runs that ended with the bits of one that was never killed"] += 1
            continue
        if code != -signal.SIGKILL:
            raise AssertionError(f"{run.folder} ended with {code}")
        run.check_files()
        lost = made - run.kept()
        count["kills"] += 1
        count[f"kills that cost up to {EVERY} steps" if lost else "kills that cost no step"] += 1
        if lost > EVERY:
            raise AssertionError(f"{run.folder} lost {lost} steps")
    return count


def stops(times: int, chance: random.Random, folder: Path, processes: int) -> Counter[str]:
    """SIGTERM at random moments."""
    count: Counter[str] = Counter()
    for run, code, made in signals(signal.SIGTERM, times, chance, folder, processes):
        if code == 0:
            count["runs that ended with the bits of one that was never terminated"] += 1
            continue
        if code != 128 + signal.SIGTERM:
            raise AssertionError(f"{run.folder} ended with {code}")
        if left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(run.folder) in _text(path)]:
            raise AssertionError(f"{left} outlived {run.folder}")
        run.check_files()
        count["signals"] += 1
        count["signals that cost a step" if made > run.kept() else "signals that cost no step"] += 1
        if made - run.kept() > 1:
            raise AssertionError(f"{run.folder} lost {made - run.kept()} steps")
    return count


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def flips(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Single bits flipped and ends cut off in all files of a run, one at a time."""
    run = Run(folder / "flipped")
    run.begin().join()
    distilled = RunFolder.of_checkpoint(run.checkpoint).distilled("best")
    spec = TrajectoryStore.open(run.folder / "experts").spec

    def experts() -> object:
        store = TrajectoryStore(run.folder / "experts", spec)
        return [store.segment(expert, 0, spec.epochs) for expert in (0, 1)]

    readers: dict[str, tuple[list[Path], Callable[[], object]]] = {
        "experts": (sorted(path for path in (run.folder / "experts").iterdir() if path.is_file()), experts),
        "checkpoint": ([run.checkpoint], lambda: AtomicCheckpointIO().load_checkpoint(run.checkpoint)),
        "artefact": (
            sorted(path for path in distilled.rglob("*") if path.is_file()),
            lambda: read_distilled(distilled),
        ),
    }
    whole = {name: _bytes_of(read()) for name, (_, read) in readers.items()}
    warnings = list[str]()
    logging.getLogger("mim4dd_pl.stored.artefact").addHandler(_Kept(warnings))
    count: Counter[str] = Counter()
    for _ in range(times):
        kind = chance.choice(list(readers))
        paths, read = readers[kind]
        path = chance.choice(paths)
        content = path.read_bytes()
        if cut := chance.random() < 0.2:
            path.write_bytes(content[: chance.randrange(len(content))])
        else:
            damaged = bytearray(content)
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
        count[f"{'files cut' if cut else 'bits flipped'}, {kind}"] += 1
        count[_seen(path, read, whole[kind], warnings)] += 1
        path.write_bytes(content)
    return count


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _bytes_of(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _seen(path: Path, read: Callable[[], object], whole: bytes, warnings: list[str]) -> str:
    """What became of the damage of a file."""
    warnings.clear()
    try:
        content = read()
    except StoredFileError as error:
        if path.name not in str(error):
            raise AssertionError(f"Damage of {path} was reported as {error}") from error
        return "refused with the name of the file"
    if _bytes_of(content) != whole:
        raise AssertionError(f"Damage of {path} was not seen")
    named = any(path.name in warning for warning in warnings)
    return "a picture or the like, read with a warning that names it" if named else "read as if it were whole"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs are; that of temporary files by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        campaigns: dict[str, tuple[int, Callable[[], Counter[str]]]] = {
            "bits and ends": (options.flips, lambda: flips(options.flips, chance, Path(place) / "flips")),
            "kill -9": (options.kills, lambda: kills(options.kills, chance, Path(place) / "kills")),
            "SIGTERM, 1 process": (options.stops, lambda: stops(options.stops, chance, Path(place) / "one", 1)),
            "SIGTERM, 2 processes": (options.stops, lambda: stops(options.stops, chance, Path(place) / "two", 2)),
        }
        for name, (wanted, campaign) in campaigns.items():
            if not wanted:
                continue
            rows.extend([name, what, str(times)] for what, times in sorted(campaign().items()))
            print(name, "is done", file=sys.stderr, flush=True)
    rig.print_table("Reliability", ["campaign", "what", "times"], rows)


if __name__ == "__main__":
    main()
