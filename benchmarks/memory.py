"""Peak memory of one outer step against the number of inner steps N: ExactUnroll beside FullGraphUnroll.

    python -m benchmarks.memory

Each measurement is a process of its own: peak resident memory of one gradient of the matching loss on images, student
lr and start, over what the process held just before it. Linux.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
from functools import partial

import torch

import mim4dd_pl
from mim4dd_pl.networks import ConvNet, FlatNetwork
from mim4dd_pl.objectives import TrajectoryMatching
from mim4dd_pl.randomness import Stream
from mim4dd_pl.synthetic import SyntheticImages
from mim4dd_pl.trajectories import Segment
from mim4dd_pl.unroll import ExactUnroll, FullGraphUnroll, Unroll

UNROLLS: dict[str, type[Unroll]] = {"ExactUnroll": ExactUnroll, "FullGraphUnroll": FullGraphUnroll}


def measure(unroll: str, steps: int, width: int, side: int, images_per_class: int) -> float:
    """MiB that one outer step adds to the peak of this process."""
    torch.set_num_threads(2)
    shape = (3, side, side)
    network = FlatNetwork(partial(ConvNet, depth=3, width=width), shape, 10)
    synthetic = SyntheticImages(shape, 10, images_per_class)
    synthetic.start_from_noise(Stream(0))
    segment = Segment(network.initial(Stream(1)), network.initial(Stream(2)))

    def outer_step(count: int) -> None:
        match = TrajectoryMatching(count, 1, 1, unroll=UNROLLS[unroll]())(network, synthetic, segment, Stream(3))
        torch.autograd.grad(match.loss, (synthetic.images, synthetic.student_lr))

    outer_step(1)  # libraries, thread pools and kernels' own workspaces are no part of the question
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outer_step(steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30, 100], help="values of N")
    parser.add_argument("--width", type=int, default=128, help="channels of ConvNetD3")
    parser.add_argument("--side", type=int, default=32, help="image side in pixels")
    parser.add_argument("--ipc", type=int, default=1, help="images per class")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("UNROLL", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = [options.width, options.side, options.ipc]
    if options.one:
        print(measure(options.one[0], int(options.one[1]), *setting))
        return
    print(f"mim4dd_pl {mim4dd_pl.__version__}, torch {torch.__version__}, {platform.machine()}, n = {options.repeats}")
    print(f"ConvNetD3-{options.width}, 3x{options.side}x{options.side}, 10 classes, ipc {options.ipc}, batch: all")
    print(f"{'MiB over a step of N = 1':<26}" + "".join(f"{f'N = {steps}':>18}" for steps in options.steps))
    flags = [f"--width={setting[0]}", f"--side={setting[1]}", f"--ipc={setting[2]}"]
    for unroll in UNROLLS:
        cells = []
        for steps in options.steps:
            command = [sys.executable, "-m", "benchmarks.memory", *flags, "--one", unroll, str(steps)]
            values = [
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(options.repeats)
            ]
            cells.append(f"{statistics.mean(values):.0f} +- {statistics.stdev(values):.0f}")
        print(f"{unroll:<26}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
