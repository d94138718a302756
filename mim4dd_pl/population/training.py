"""Training many networks: the experts, and the students that evaluate a synthetic set.

K networks are trained at once, as pure functions of flat vectors, on batches sliced from memory. A CPU is filled by one
network, so K is 1 there (see :func:`at_once`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.identity import identity, text
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.engine.derivatives import Derivatives, Work


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
        sharpness_radius: rho of sharpness-aware steps, for flat experts as FTD wants them; 0, plain SGD, by default.
    """

    epochs: int
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at_half: bool = False
    augment: DSA | None = None
    sharpness_radius: float = 0.0

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}.")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"momentum must lie in [0, 1) and weight_decay be at least 0, got {self.momentum} "
                f"and {self.weight_decay}."
            )
        if not 0 <= self.sharpness_radius < float("inf"):
            raise ValueError(f"sharpness_radius must be at least 0 and finite, got {self.sharpness_radius}.")

    def __repr__(self) -> str:
        return text(identity(self))

    def gradient(self, derivatives: Derivatives, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        r"""What K networks descend along, shape (K, P): the gradient, or where it is sharpest nearby.

        .. math:: \nabla L\big(\theta + \rho\, \nabla L(\theta) / \|\nabla L(\theta)\|\big)

        Source: Foret et al. 2021 (arXiv:2010.01412), Eq. 3, which Du et al. 2023 (FTD, arXiv:2211.11004) build on.
        """
        gradient = derivatives.gradient(theta, images, labels)
        if not self.sharpness_radius:
            return gradient
        tiny = torch.finfo(gradient.dtype).tiny
        uphill = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=tiny)
        return derivatives.gradient(theta + self.sharpness_radius * uphill, images, labels)

    def steps(self, num_images: int) -> int:
        """Steps of one network on so many images."""
        return self.epochs * -(-num_images // self.batch_size)

    def work(self, num_images: int, networks: int) -> Work:
        """What so many networks ask of the derivatives."""
        passes = 2 if self.sharpness_radius else 1
        return Work(min(self.batch_size, num_images), gradients=passes * networks * self.steps(num_images))


def at_once(device: torch.device) -> int:
    """How many networks to train at once: one fills a CPU (five at once run at half its speed), not a GPU."""
    return 1 if device.type == "cpu" else 10


def train(
    derivatives: Derivatives,
    theta: Tensor,
    sets: Sequence[Indexable],
    training: Training,
    streams: Sequence[Stream],
) -> Iterator[Tensor]:
    """Train K networks, each as if it were alone, and show their parameters after every epoch.

    Args:
        derivatives: Of their loss.
        theta: Initial parameters, shape (K, P); not changed.
        sets: What each is trained on, K of them, equally long, on the device of ``theta``.
        training: How.
        streams: Decide the order of the images and the augmentation of each.

    Yields:
        Parameters after each epoch, shape (K, P), detached; not changed later.
    """
    velocity = torch.zeros_like(theta)
    for epoch in range(training.epochs):
        lr = training.lr * (0.1 if training.decay_at_half and epoch >= training.epochs // 2 else 1.0)
        orders = [
            torch.randperm(len(images), generator=stream.at("order", epoch).generator())
            .to(theta.device)
            .split(training.batch_size)
            for images, stream in zip(sets, streams, strict=True)
        ]
        for step, chosen in enumerate(zip(*orders, strict=True)):
            x, y = zip(*(images.batch(indices) for images, indices in zip(sets, chosen, strict=True)), strict=True)
            if training.augment is not None:
                x = tuple(
                    training.augment(part, stream.at("augment", epoch, step))
                    for part, stream in zip(x, streams, strict=True)
                )
            gradient = training.gradient(derivatives, theta, torch.stack(x), torch.stack(y))
            if training.weight_decay:
                gradient = gradient + training.weight_decay * theta
            velocity = training.momentum * velocity + gradient if training.momentum else gradient
            theta = theta - lr * velocity
        yield theta
