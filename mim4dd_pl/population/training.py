"""Training many networks: the experts, and the students that evaluate a synthetic set.

K networks are trained at once, as pure functions of flat vectors, on batches sliced from memory. A CPU is filled by one
network, so K is 1 there (see :func:`at_once`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.identity import identity, text
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.cutmix import cutmix
from mim4dd_pl.data.sets import Batch, Indexable
from mim4dd_pl.engine.derivatives import Derivatives, Work, soft


@dataclass(frozen=True)
class Training:
    """How one network is trained: SGD on minibatches without replacement.

    Args:
        epochs: Passes over the images, at least 1.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        lr: Learning rate, positive.
        momentum: In [0, 1).
        weight_decay: Coefficient of theta added to the gradient.
        decay_at_half: Drop the learning rate after half of the epochs.
        augment: Augmentation, one operation per minibatch; none by default.
        sharpness_radius: rho of sharpness-aware steps, for flat experts as FTD wants them; 0, plain SGD, by default.
        lr_drops: Fractions of the epochs, rising in (0, 1), at which the learning rate drops as well, each at the
            nearest whole epoch.
        lr_factor: What a drop multiplies it by, in (0, 1].
        cutmix: Probability with which a minibatch goes through CutMix, after ``augment``; in [0, 1]. Above 0, every
            minibatch has soft labels.
    """

    epochs: int
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at_half: bool = False
    augment: DSA | None = None
    sharpness_radius: float = 0.0
    lr_drops: tuple[float, ...] = ()
    lr_factor: float = 0.1
    cutmix: float = 0.0

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
        if not all(earlier < later for earlier, later in pairwise((0.0, *self.lr_drops, 1.0))):
            raise ValueError(f"lr_drops must rise within (0, 1), got {list(self.lr_drops)}.")
        if not 0 < self.lr_factor <= 1:
            raise ValueError(f"lr_factor must lie in (0, 1], got {self.lr_factor}.")
        if not 0 <= self.cutmix <= 1:
            raise ValueError(f"cutmix must be a probability in [0, 1], got {self.cutmix}.")

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

    def lr_of(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        drops = {*self.lr_drops, *([0.5] if self.decay_at_half else [])}
        passed = sum(epoch >= math.ceil(at * self.epochs - 0.5) for at in drops)
        return self.lr * self.lr_factor**passed

    def minibatch(self, batch: Batch, num_classes: int, stream: Stream, at: tuple[int, int]) -> Batch:
        """What a network sees of a minibatch in a step ``at`` (epoch, step), as its stream decides."""
        images, labels = batch
        if self.augment is not None:
            images = self.augment(images, stream.at("augment", *at))
        if self.cutmix:
            labels = distributions(labels, num_classes, images.dtype)
            images, labels = cutmix(images, labels, self.cutmix, stream.at("cutmix", *at))
        return Batch(images, labels)

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
        lr = training.lr_of(epoch)
        orders = [
            torch.randperm(len(images), generator=stream.at("order", epoch).generator())
            .to(theta.device)
            .split(training.batch_size)
            for images, stream in zip(sets, streams, strict=True)
        ]
        for step, chosen in enumerate(zip(*orders, strict=True)):
            batches = (
                training.minibatch(images.batch(indices), derivatives.network.num_classes, stream, (epoch, step))
                for images, indices, stream in zip(sets, chosen, streams, strict=True)
            )
            x, y = zip(*batches, strict=True)
            gradient = training.gradient(derivatives, theta, torch.stack(x), torch.stack(y))
            if training.weight_decay:
                gradient = gradient + training.weight_decay * theta
            velocity = training.momentum * velocity + gradient if training.momentum else gradient
            theta = theta - lr * velocity
        yield theta


def distributions(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Soft labels, shape (B, C): as they are, or all on the class where labels are classes, shape (B,)."""
    if soft(labels):
        return labels
    return torch.zeros(len(labels), num_classes, dtype=dtype, device=labels.device).scatter_(1, labels[:, None], 1)
