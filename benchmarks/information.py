"""The information term beside the outer step that carries it.

    python -m benchmarks.information --cases 1x50 10x30

The term of ``configs/with/mutual_information.yaml`` (256 real images, gradients of pixels and heads included) and the
matching of one segment, compiled; ConvNetD3-128 on CIFAR-10 shapes.
"""

import statistics
from functools import partial

import torch

from benchmarks import rig, step
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import information_gradients
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.base import Match
from mim4dd_pl.objectives.synthetic import SyntheticImages


def build(device: torch.device, ipc: int, steps: int) -> rig.Run:
    """An outer step of N = ``steps``; with N = 0, the term alone."""
    if steps:
        return step.build(device, ipc, steps, full=False, compiled=True)
    network = FlatNetwork(partial(ConvNet, depth=3, width=128), (3, 32, 32), 10)
    synthetic = SyntheticImages((3, 32, 32), 10, ipc)
    synthetic.start_from_noise(Stream(0))
    synthetic.to(device)
    term = InformationTerm(network.layer_shapes(), 10).to(device)
    theta = network.initial(Stream(1)).to(device)[None]
    match = Match(torch.zeros(1, device=device), theta, theta)
    images = torch.randn(256, 3, 32, 32, generator=Stream(2).generator()).to(device)
    real = Batch(images, (torch.arange(256) % 10).to(device))
    return lambda: information_gradients(match, synthetic.decoded(), Derivatives(network), term, [real])


def main() -> None:
    """Print one table."""
    parser = rig.arguments(__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x50", "10x30"], help="ipc x N")
    options = parser.parse_args()
    if rig.serve(options, build):
        return
    print(rig.machine(options))
    rows = []
    for case in options.cases[:1] if options.short else options.cases:
        ipc, steps = (int(number) for number in case.split("x"))
        variants = [{"ipc": ipc, "steps": inner, "keep": True} for inner in (0, 2)]
        term, two = rig.measure("benchmarks.information", options, variants)
        outer = [seconds * steps / 2 for seconds in two.seconds]  # two inner steps are enough to know N of them
        shares = [seconds / (seconds + whole) for seconds, whole in zip(term.seconds, outer, strict=True)]
        share = f"{100 * statistics.median(shares):.1f} %"
        rows.append([str(ipc), str(steps), rig.spread(term.seconds), rig.spread(outer), share])
    header = ["ipc", "N", "term, s", "matching, s", "share of the step"]
    rig.print_table("The information term", header, rows)


if __name__ == "__main__":
    main()
