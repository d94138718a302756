"""An outer step of hosts that match features: as it is written, in chunks, compiled, and in half precision.

    python -m benchmarks.features

ConvNetD3-128, CIFAR-10 shapes, DSA; the real images are at hand, so that reading them is no part of it.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks import rig
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.base import Objective, Scene
from mim4dd_pl.objectives.distribution_matching import DistributionMatching
from mim4dd_pl.objectives.stage_matching import StageMatching
from mim4dd_pl.objectives.synthetic import SyntheticImages
from mim4dd_pl.stored.trajectories import Segment

VARIANTS = ("as written", "in chunks", "compiled", "compiled, half precision")
CASES = {"DM, ipc 10, 256 real": (10, 1), "StageMatching, ipc 10 2x2, 128 real": (10, 2)}


class _Whole(Derivatives):
    """All images of a kind in one piece."""

    def chunk(self, batch_size: int, device: torch.device) -> int:
        return batch_size


def build(device: torch.device, case: str, variant: str) -> rig.Run:
    """One outer step, with its gradient on the stored images."""
    ipc, formation = CASES[case]
    network = FlatNetwork(partial(ConvNet, depth=3, width=128), (3, 32, 32), 10)
    if "half" in variant:
        network = network.in_half_precision()
    engine: Derivatives = (_Whole if variant == "as written" else Derivatives)(network)
    if "compiled" in variant:
        engine = CompiledDerivatives(network, 10 * ipc, device)
    synthetic = SyntheticImages((3, 32, 32), 10, ipc, formation=formation)
    synthetic.start_from_noise(Stream(0))
    synthetic.to(device)
    augment = DSA(["color", "crop", "cutout"])
    host: Objective = DistributionMatching(256, augment)
    if formation > 1:
        host = StageMatching(1, real_per_class=128, augment=augment, constraint=1.0)
    scene = Scene(Stream(3), [Stream(3)], _real().to(device), _expert(network, device))

    def run() -> Tensor:
        loss = host(engine, synthetic.decoded(), scene).loss.sum()
        return torch.autograd.grad(loss, synthetic.images)[0]

    return run


def _real() -> ImageSet:
    """Noise: 256 images of each class."""
    pixels = torch.randint(0, 256, (2560, 3, 32, 32), dtype=torch.uint8, generator=Stream(2).generator())
    labels = torch.arange(2560) % 10
    normalization = Normalization(torch.full((3,), 0.5), torch.full((3,), 0.25))
    return ImageSet(pixels, torch.arange(2560), labels, normalization, 10, "noise")


def _expert(network: FlatNetwork, device: torch.device) -> Segment:
    """Two initialisations in place of an expert's epochs."""
    start, target = (network.initial(Stream(number))[None].to(device) for number in (1, 2))
    return Segment(start, target)


def main() -> None:
    """Print one table for each case."""
    options = rig.arguments(__doc__).parse_args()
    if rig.serve(options, build):
        return
    print(rig.machine(options))
    for case in list(CASES)[:1] if options.short else CASES:
        variants = [{"case": case, "variant": variant, "keep": True} for variant in VARIANTS]
        measured = rig.measure("benchmarks.features", options, variants)
        rows = [
            [variant, rig.spread(each.seconds), rig.ratio(each, measured[0]), f"{each.mebibytes:.0f}"]
            for variant, each in zip(VARIANTS, measured, strict=True)
        ]
        rig.print_table(case, ["variant", "seconds", "ratio", "MiB"], rows)


if __name__ == "__main__":
    main()
