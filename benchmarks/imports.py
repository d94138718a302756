"""What importing the library and starting the program cost: CPU seconds of fresh processes, beside ``import torch``.

python -m benchmarks.imports --rounds 7
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.rig import print_table

STATEMENTS = {
    "import torch": "import torch",
    "three names": "from mim4dd_pl import DistilledDataset, InformationTerm, unroll",
    "all names but distill": "import mim4dd_pl as dd; [getattr(dd, n) for n in dd.__all__ if n != 'distill']",
    "import lightning": "import lightning",
    "mim4dd --help": "import sys; sys.argv[1:] = ['--help']; import mim4dd_pl.__main__ as p; p.run()",
}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each statement, interleaved")
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds + 1):  # the first reads the files
        for name, statement in STATEMENTS.items():
            seconds[name].append(cpu_seconds(statement))
    reference = seconds["import torch"][1:]
    rows = []
    for name, (_, *taken) in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(taken, reference, strict=True)]
        std = statistics.stdev(taken) if rounds > 1 else 0.0
        rows.append([name, f"{statistics.median(taken):.2f} +- {std:.2f}", f"{statistics.median(ratios):.2f}"])
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {rounds} interleaved rounds, median +- std")
    print_table("CPU seconds of a process, start included", ["statement", "s", "over `import torch`"], rows)


def cpu_seconds(statement: str) -> float:
    """User and system seconds of a fresh process, on one thread, that runs ``statement`` and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
