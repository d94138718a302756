"""Experts: networks trained on the real images, kept after every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.identity import identity
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.engine.compiled import Compile, derivatives, worth_compiling
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.population.training import Training, train
from mim4dd_pl.stored.trajectories import Storage, TrajectorySpec, TrajectoryStore


@dataclass(frozen=True)
class Experts:
    """A recipe for experts: networks trained on the real images, kept after every epoch.

    Args:
        root: Folder of their trajectories.
        training: How each is trained.
        num_experts: How many.
        storage: Type of the stored parameters; ``bfloat16`` halves the space (see docs/method.md for what it costs).
        seed: Of initialisations, order and augmentation; apart from the run's seed, so runs can share experts.
    """

    root: str
    training: Training
    num_experts: int = 100
    storage: Storage = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.root in ("", "None"):
            raise ValueError("root must name a folder, got nothing.")
        check_positive(num_experts=self.num_experts)

    def spec(self, network: FlatNetwork, data_set: str, data_fingerprint: str) -> TrajectorySpec:
        """What the stored trajectories of this recipe must say of themselves."""
        return TrajectorySpec(
            data_set=data_set,
            data_fingerprint=data_fingerprint,
            network=network.identity,
            num_parameters=network.num_parameters,
            training=identity(self.training),
            epochs=self.training.epochs,
            seed=self.seed,
            storage=self.storage,
        )

    def missing(self, store: TrajectoryStore) -> list[int]:
        """Numbers of the experts that ``store`` still lacks."""
        return [expert for expert in range(self.num_experts) if expert not in store.finished]

    def derivatives(
        self, network: FlatNetwork, images: Indexable, compile: Compile, device: torch.device
    ) -> Derivatives:
        """What :meth:`train` needs to train the experts."""
        work = self.training.work(len(images), self.num_experts)
        return derivatives(network, worth_compiling(network, compile, work), work.batch_size, device)

    def train(
        self, experts: Sequence[int], derivatives: Derivatives, images: Indexable, device: torch.device
    ) -> Tensor:
        """The trajectories of some experts, shape (len(experts), epochs + 1, P), on the CPU."""
        streams = [Stream(self.seed).at("expert", expert) for expert in experts]
        theta = torch.stack([derivatives.network.initial(stream.at("initial")) for stream in streams]).to(device)
        rows = [theta.cpu()]
        sets = [images] * len(streams)
        rows.extend(row.cpu() for row in train(derivatives, theta, sets, self.training, streams))
        return torch.stack(rows, 1)
