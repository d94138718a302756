"""How fast outer steps are with several processes on this machine.

    python -m benchmarks.processes

Whole fits of the digits with the information term and eight segments per step, one after the other, on 1, 2 and 4
processes; the pace of a fit is the mean over its steps but the first ten.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks import rig

STEPS, WARM_UP = 60, 10


class Pace(L.Callback):
    """Writes the mean seconds of a step to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        if trainer.global_step == STEPS and trainer.is_global_zero:
            seconds = (time.perf_counter() - self.start) / (STEPS - WARM_UP)
            self.path.write_text(json.dumps(seconds), encoding="utf-8")


def seconds_per_step(processes: int, folder: Path, options: argparse.Namespace) -> float:
    """Of one fit."""
    pace = folder / "pace.json"
    recipes = [f"configs/{name}.yaml" for name in ("distill/digits", "with/mutual_information", "with/smoke")]
    callbacks = [
        {"class_path": "Evaluation", "init_args": {"num_students": 2, "training": {"epochs": 1}}},
        {"class_path": "benchmarks.processes.Pace", "init_args": {"path": str(pace)}},
    ]
    command = [
        *(sys.executable, "-m", "mim4dd_pl", "fit", *(part for recipe in recipes for part in ("-c", recipe))),
        *("--model.segments_per_step=8", "--model.compile=false", f"--threads={options.threads}"),
        *(f"--trainer.devices={processes}", f"--trainer.accelerator={options.device}"),
        *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"),
        *(f"--model.experts.root={folder}/experts", f"--trainer.logger.init_args.save_dir={folder}"),
        f"--trainer.callbacks={json.dumps(callbacks)}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads(pace.read_text(encoding="utf-8")))


def main() -> None:
    """Print one table."""
    parser = rig.arguments(__doc__)
    parser.set_defaults(rounds=3, threads=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(rig.machine(options))
    paces: dict[int, list[float]] = {count: [] for count in options.processes}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for count, seconds in paces.items():
                seconds.append(seconds_per_step(count, Path(folder), options))
    first = paces[options.processes[0]]
    rows = []
    for count, seconds in paces.items():
        ratios = [other / own for other, own in zip(first, seconds, strict=True)]
        spread = f" +- {statistics.stdev(ratios):.2f}" if len(ratios) > 1 else ""
        rows.append([str(count), f"{statistics.median(seconds):.3g}", f"{statistics.mean(ratios):.2f}{spread}"])
    rig.print_table("Outer step of 8 segments", ["processes", "s", "times as fast as the first"], rows)


if __name__ == "__main__":
    main()
