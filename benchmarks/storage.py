"""What storing experts in bfloat16 adds to the matching loss, and how long a segment takes to read.

    python -m benchmarks.storage checkpoints/experts/digits --expert_epochs 2

A student cannot come nearer to a rounded target than its rounding error, so the loss gains a floor: the squared
rounding error of the target over the expert's squared way from t to t + M. Reads float32 experts, writes nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors import safe_open


def main() -> None:
    """Print one line for each start epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of the experts")
    parser.add_argument("--expert_epochs", type=int, default=2, help="M")
    options = parser.parse_args()
    started, floors = time.perf_counter(), []
    paths = sorted(options.root.glob("expert_*.safetensors"))
    for path in paths:
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice("trajectory")
            starts = range(rows.get_shape()[0] - options.expert_epochs)
            pairs = [(rows[t].float(), rows[t + options.expert_epochs].float()) for t in starts]
        floors.append([_floor(start, target) for start, target in pairs])
    milliseconds = 1000 * (time.perf_counter() - started) / sum(len(row) for row in floors)
    print(f"{len(paths)} experts of {options.root}, M = {options.expert_epochs}; {milliseconds:.2f} ms a segment")
    for t, column in enumerate(zip(*floors, strict=True)):
        values = torch.tensor(column)
        print(f"t = {t}: floor of the matching loss {values.mean():.1e} (largest {values.max():.1e})")


def _floor(start: torch.Tensor, target: torch.Tensor) -> float:
    error = target - target.bfloat16().float()
    return float(error.square().sum() / (target - start).square().sum())


if __name__ == "__main__":
    main()
