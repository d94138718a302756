"""The rig of the benchmarks: variants in processes of their own, measured in interleaved rounds.

A variant is a process, because the allocator's settings and torch's thread pools belong to one. The parent asks each in
turn for one run, round after round, so that a machine whose speed drifts treats all alike; tables hold medians and the
ratio to the first variant.
"""

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mim4dd_pl
from mim4dd_pl.basics.machine import allow_tf32, device_name, keep_freed_memory, peak_memory

Run = Callable[[], object]


class Measured(NamedTuple):
    """Seconds of each run, and MiB that a run adds at its peak to what the process holds between runs.

    On a CUDA device it is all that the process has reserved at most, as graphs keep theirs between runs.
    """

    seconds: list[float]
    mebibytes: float


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--short", action="store_true", help="the smallest case only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def serve(options: argparse.Namespace, build: Callable[..., Run]) -> bool:
    """In a worker: build the variant, run it whenever asked, and return True at the end; False in the parent.

    Args:
        options: Of the command line.
        build: Builds the run from the variant's settings.
    """
    if options.worker is None:
        return False
    settings = json.loads(options.worker)
    torch.set_num_threads(options.threads)
    allow_tf32(False)  # as the program by default
    if settings.pop("keep", False):
        keep_freed_memory()
    run = build(device=torch.device(options.device), **settings)
    run()  # libraries, thread pools and compilers are no part of the question
    for request in sys.stdin:
        print(json.dumps(_peak(run, options.device) if request.strip() == "memory" else _timed(run, options.device)))
        sys.stdout.flush()
    return True


def measure(module: str, options: argparse.Namespace, variants: Sequence[dict[str, Any]]) -> list[Measured]:
    """Run ``python -m module --worker variant`` for each variant, ``options.rounds`` rounds."""
    flags = ["--threads", str(options.threads), "--device", options.device]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, *flags, "--worker", json.dumps(variant)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for variant in variants
    ]

    def ask(worker: "subprocess.Popen[str]", request: str) -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(request + "\n")
        worker.stdin.flush()
        return float(json.loads(worker.stdout.readline()))

    try:
        mebibytes = [ask(worker, "memory") for worker in workers]
        seconds = [[ask(worker, "time") for worker in workers] for _ in range(options.rounds)]
    finally:
        for worker in workers:
            worker.kill()
    return [Measured(list(times), peak) for times, peak in zip(zip(*seconds, strict=True), mebibytes, strict=True)]


def machine(options: argparse.Namespace) -> str:
    """What a row must say of where it was measured."""
    device = f"{platform.machine()}, {device_name(torch.device(options.device))}"
    return (
        f"{time.strftime('%Y-%m-%d')}, version {mim4dd_pl.__version__}, torch {torch.__version__}, {device}, "
        f"{options.threads} threads, {options.rounds} interleaved rounds, median +- std"
    )


def spread(values: Sequence[float]) -> str:
    """Median +- std."""
    return f"{statistics.median(values):.3g} +- {statistics.stdev(values) if len(values) > 1 else 0:.1g}"


def ratio(measured: Measured, reference: Measured) -> str:
    """Median of the rounds' ratios."""
    pairs = zip(measured.seconds, reference.seconds, strict=True)
    return f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, as ``benchmarks/results.md`` keeps it."""
    print(f"\n{title}\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def _timed(run: Run, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(run: Run, device: str) -> float:
    if device == "cuda":
        run()
        return 1024 * peak_memory(torch.device(device))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    resident = _status("VmRSS")
    run()
    return _status("VmHWM") - resident


def _status(field: str) -> float:
    """MiB of a field of ``/proc/self/status``; Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
