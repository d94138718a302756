"""Training of experts, in images x experts per second, beside a plain loop over a module with torch's optimiser.

    python -m benchmarks.experts

ConvNetD3-128 on CIFAR-10 shapes, batch 256, SGD, no augmentation (both sides would pay the same for it).
"""

from collections import deque
from functools import partial

import torch

from benchmarks import rig
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.training import Training, train

BATCH, STEPS = 256, 4
VARIANTS = {
    "plain loop, usual allocator": {"kind": "loop", "keep": False},
    "plain loop": {"kind": "loop", "keep": True},
    "population, plain": {"kind": "plain", "keep": True},
    "population, compiled": {"kind": "compiled", "keep": True},
}


def build(device: torch.device, kind: str, networks: int) -> rig.Run:
    """One epoch of ``STEPS`` steps of each network."""
    network = FlatNetwork(partial(ConvNet, depth=3, width=128), (3, 32, 32), 10)
    generator = Stream(0).generator()
    images = torch.randn(BATCH * STEPS, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (BATCH * STEPS,), generator=generator).to(device)
    if kind == "loop":
        return partial(plain_loops, network, images, labels, networks)
    engine = CompiledDerivatives(network, BATCH, device) if kind == "compiled" else Derivatives(network)
    streams = [Stream(number) for number in range(networks)]
    theta = torch.stack([network.initial(stream) for stream in streams]).to(device)
    sets = [InMemory(images, labels)] * networks
    return lambda: deque(train(engine, theta, sets, Training(epochs=1, batch_size=BATCH), streams), maxlen=0)


def plain_loops(network: FlatNetwork, images: torch.Tensor, labels: torch.Tensor, networks: int) -> None:
    """What one writes without thinking of speed."""
    for _ in range(networks):
        module = network.factory(network.image_shape, network.num_classes).to(images.device)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for chosen in torch.randperm(len(images)).to(images.device).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
            optimizer.step()


def main() -> None:
    """Print one table."""
    parser = rig.arguments(__doc__)
    parser.add_argument("--networks", type=int, default=1, help="networks trained at once")
    options = parser.parse_args()
    if rig.serve(options, build):
        return
    print(rig.machine(options))
    chosen = [{"networks": options.networks, **settings} for settings in VARIANTS.values()]
    measured = rig.measure("benchmarks.experts", options, chosen)
    amount = BATCH * STEPS * options.networks
    rows = [
        [
            name,
            rig.spread([amount / seconds for seconds in each.seconds]),
            *(f"{1 / float(rig.ratio(each, other)):.2f}" for other in measured[:2]),
            f"{each.mebibytes:.0f}",
        ]
        for name, each in zip(VARIANTS, measured, strict=True)
    ]
    header = ["way", "images x experts / s", *(f"times {name}" for name in list(VARIANTS)[:2]), "peak MiB"]
    rig.print_table(f"Experts, {options.networks} at once, batch {BATCH}", header, rows)


if __name__ == "__main__":
    main()
