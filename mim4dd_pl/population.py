"""Training many networks: the experts, and the students that evaluate a synthetic set.

Networks are trained one after another, as pure functions of a flat vector, on batches sliced from memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd_pl.augment import DSA
from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.functional import cross_entropy
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.randomness import Stream
from mim4dd_pl.trajectories import TrajectorySpec, TrajectoryStore


@dataclass(frozen=True)
class Training:
    """How one network is trained: SGD on minibatches without replacement.

    Args:
        epochs: Passes over the images, at least 1.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        lr: Learning rate, positive.
        momentum: In [0, 1).
        weight_decay: Coefficient of theta added to the gradient.
        decay_at_half: Multiply the learning rate by 0.1 after half of the epochs.
        augment: Augmentation, one operation per minibatch; none by default.
    """

    epochs: int
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at_half: bool = False
    augment: DSA | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"training.epochs and training.batch_size must be at least 1, got {self.epochs} and {self.batch_size}."
            )
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"training.lr must be positive and finite, got {self.lr}.")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"training.momentum must lie in [0, 1) and training.weight_decay be at least 0, got {self.momentum} "
                f"and {self.weight_decay}."
            )

    def lr_at(self, epoch: int) -> float:
        """Learning rate of ``epoch``, counted from 0."""
        return self.lr * (0.1 if self.decay_at_half and epoch >= self.epochs // 2 else 1.0)


def train(
    network: FlatNetwork, theta: Tensor, images: Indexable, training: Training, stream: Stream
) -> Iterator[Tensor]:
    """Train one network and show its parameters after every epoch.

    Args:
        network: The architecture.
        theta: Initial parameters, shape (P,); not changed.
        images: What to train on, on the device of ``theta``.
        training: How.
        stream: Decides the order of the images and the augmentation.

    Yields:
        Parameters after each epoch, shape (P,), detached; not changed later.
    """
    velocity = torch.zeros_like(theta)
    for epoch in range(training.epochs):
        lr = training.lr_at(epoch)
        order = torch.randperm(len(images), generator=stream.at("order", epoch).generator()).to(theta.device)
        for step, indices in enumerate(order.split(training.batch_size)):
            x, y = images.batch(indices)
            if training.augment is not None:
                x = training.augment(x, stream.at("augment", epoch, step))
            with torch.enable_grad():
                theta = theta.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(network(theta, x), y), theta)
            theta = theta.detach()
            if training.weight_decay:
                gradient = gradient + training.weight_decay * theta
            velocity = training.momentum * velocity + gradient if training.momentum else gradient
            theta = theta - lr * velocity
        yield theta


@dataclass(frozen=True)
class Experts:
    """A recipe for experts: networks trained on the real images, kept after every epoch.

    Args:
        root: Folder of their trajectories.
        training: How each is trained.
        num_experts: How many.
        seed: Of initialisations, order and augmentation; apart from the run's seed, so runs can share experts.
    """

    root: str
    training: Training
    num_experts: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.root in ("", "None"):
            raise ValueError("model.experts.root must name a folder, got nothing.")
        if self.num_experts < 1:
            raise ValueError(f"model.experts.num_experts must be at least 1, got {self.num_experts}.")

    def spec(self, network: FlatNetwork, data_set: str, data_fingerprint: str) -> TrajectorySpec:
        """What the stored trajectories of this recipe must say of themselves."""
        return TrajectorySpec(
            data_set=data_set,
            data_fingerprint=data_fingerprint,
            network=network.name,
            num_parameters=network.num_parameters,
            training=repr(self.training),
            epochs=self.training.epochs,
            seed=self.seed,
        )

    def missing(self, store: TrajectoryStore) -> list[int]:
        """Numbers of the experts that ``store`` still lacks."""
        return [expert for expert in range(self.num_experts) if expert not in store.finished]

    def train(self, expert: int, network: FlatNetwork, images: Indexable, device: torch.device) -> Tensor:
        """The trajectory of one expert, shape (epochs + 1, P), on the CPU."""
        stream = Stream(self.seed).at("expert", expert)
        theta = network.initial(stream.at("initial")).to(device)
        rows = [theta.cpu()]
        rows.extend(row.cpu() for row in train(network, theta, images, self.training, stream))
        return torch.stack(rows)
