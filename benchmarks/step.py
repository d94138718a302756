"""One outer step: the gradient of the matching loss on images and student lr, by each way to differentiate.

    python -m benchmarks.step --cases 1x50 10x10

ConvNetD3-128 on CIFAR-10 shapes, all images in each inner step. The reference is autograd through the whole inner loop
(``FullGraphUnroll``), as the field's code does it, with the C library's usual allocator and with freed memory kept.
"""

from functools import partial

import torch

from benchmarks import rig
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.base import Scene
from mim4dd_pl.objectives.synthetic import SyntheticImages
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.stored.trajectories import Segment

VARIANTS = {
    "full graph, usual allocator": {"full": True, "compiled": False, "keep": False},
    "full graph": {"full": True, "compiled": False, "keep": True},
    "exact, plain": {"full": False, "compiled": False, "keep": True},
    "exact, compiled": {"full": False, "compiled": True, "keep": True},
}


def build(
    device: torch.device,
    ipc: int,
    steps: int,
    full: bool,
    compiled: bool,
    classes: int = 10,
    side: int = 32,
    segments: int = 1,
) -> rig.Run:
    """One outer step of ``segments`` segments, one after another."""
    depth = {32: 3, 64: 4, 128: 5}[side]
    network = FlatNetwork(partial(ConvNet, depth=depth, width=128), (3, side, side), classes)
    synthetic = SyntheticImages((3, side, side), classes, ipc)
    synthetic.start_from_noise(Stream(0))
    synthetic.to(device)
    theta = torch.stack([network.initial(Stream(number)) for number in (1, 2)]).to(device)
    engine = CompiledDerivatives(network, classes * ipc, device) if compiled else Derivatives(network)
    objective = TrajectoryMatching(steps, 1, 1, unroll=FullGraphUnroll() if full else ExactUnroll())
    scene = Scene(Stream(3), [Stream(3)], segments=Segment(theta[:1], theta[1:]))

    def run() -> None:
        for _ in range(segments):
            match = objective(engine, synthetic.decoded(), scene)
            torch.autograd.grad(match.loss.sum(), (synthetic.images, synthetic.student_lr))

    return run


def main() -> None:
    """Print one table for each case."""
    parser = rig.arguments(__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x10", "1x50", "10x10"], help="ipc x N")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants")
    options = parser.parse_args()
    if rig.serve(options, build):
        return
    print(rig.machine(options))
    for case in options.cases[:1] if options.short else options.cases:
        ipc, steps = (int(number) for number in case.split("x"))
        chosen = [{"ipc": ipc, "steps": steps, **VARIANTS[name]} for name in options.only]
        measured = rig.measure("benchmarks.step", options, chosen)
        rows = [
            [
                name,
                rig.spread(each.seconds),
                *(rig.ratio(each, other) for other in measured[:2]),
                f"{each.mebibytes:.0f}",
            ]
            for name, each in zip(options.only, measured, strict=True)
        ]
        header = ["way", "s", *(f"over {name}" for name in options.only[:2]), "peak MiB"]
        rig.print_table(f"ipc {ipc}, N = {steps}", header, rows)


if __name__ == "__main__":
    main()
