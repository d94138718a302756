"""Students of an evaluation: seconds for an epoch of one student, and their share of a run.

    python -m benchmarks.evaluation

ConvNetD3-128 on CIFAR-10 shapes, with DSA. The share is that of an evaluation of 5 students x 1000 epochs after every
500 of 5,000 outer steps of N = 30 (ipc 1: N = 50), beside those steps.
"""

import statistics
from collections import deque
from functools import partial

import torch

from benchmarks import rig, step
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.training import Training, train

EPOCHS = 5


def build(
    device: torch.device, ipc: int, compiled: bool, networks: int = 1, outer: bool = False, steps: int = 1
) -> rig.Run:
    """``EPOCHS`` epochs of each student; with ``outer``, an outer step for comparison."""
    if outer:
        return step.build(device, ipc, steps, full=False, compiled=compiled)
    network = FlatNetwork(partial(ConvNet, depth=3, width=128), (3, 32, 32), 10)
    images = torch.randn(10 * ipc, 3, 32, 32, generator=Stream(0).generator()).to(device)
    data = InMemory(images, torch.arange(10).repeat_interleave(ipc).to(device))
    batch = min(256, 10 * ipc)
    engine = CompiledDerivatives(network, batch, device) if compiled else Derivatives(network)
    training = Training(EPOCHS, batch, lr=0.01, momentum=0.9, weight_decay=5e-4, augment=DSA())
    streams = [Stream(number) for number in range(networks)]
    theta = torch.stack([network.initial(stream) for stream in streams]).to(device)
    return lambda: deque(train(engine, theta, [data] * networks, training, streams), maxlen=0)


def main() -> None:
    """Print one table."""
    parser = rig.arguments(__doc__)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--networks", type=int, default=1, help="students trained at once")
    options = parser.parse_args()
    if rig.serve(options, build):
        return
    print(rig.machine(options))
    rows = []
    for ipc in options.ipc[:1] if options.short else options.ipc:
        shared = {"ipc": ipc, "keep": True}
        variants = [{**shared, "compiled": compiled, "networks": options.networks} for compiled in (False, True)]
        steps = 50 if ipc == 1 else 30
        # Two inner steps are enough to know N of them.
        variants.append({**shared, "compiled": True, "outer": True, "steps": 2})
        plain, compiled, outer = rig.measure("benchmarks.evaluation", options, variants)
        epoch = [[seconds / EPOCHS / options.networks for seconds in each.seconds] for each in (plain, compiled)]
        evaluation = 10 * 5 * 1000 * statistics.median(epoch[1])
        distillation = 5000 * steps * statistics.median(outer.seconds) / 2
        share = f"{100 * evaluation / (evaluation + distillation):.0f} %"
        rows.append([str(ipc), *(rig.spread(each) for each in epoch), rig.ratio(compiled, plain), share])
    header = ["ipc", "plain, s", "compiled, s", "ratio", "share of a run"]
    rig.print_table(f"An epoch of a student, {options.networks} at once", header, rows)


if __name__ == "__main__":
    main()
