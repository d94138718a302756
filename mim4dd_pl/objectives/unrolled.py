"""Hosts that unroll the student's training on the synthetic images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd_pl.augment import DSA
from mim4dd_pl.derivatives import Derivatives, Work
from mim4dd_pl.functional import parameter_distance
from mim4dd_pl.objectives.base import Match, Objective
from mim4dd_pl.optimizers import SGD, InnerOptimizer
from mim4dd_pl.randomness import Stream
from mim4dd_pl.synthetic import SyntheticImages
from mim4dd_pl.trajectories import Segment
from mim4dd_pl.unroll import ExactUnroll, FullGraphUnroll, InnerLoop, Unroll


class TrajectoryMatching(Objective):
    """MTT: N steps on the synthetic images should take a student where M epochs on the real ones took the expert.

    Source: Cazenavette et al. 2022 (arXiv:2203.11932), Algorithm 1.

    Args:
        unroll_steps: N, at least 1.
        expert_epochs: M, at least 1.
        max_start_epoch: Segments start uniformly in 0..max_start_epoch-1; at least 1.
        synthetic_batch_size: Synthetic images per inner step; all of them by default. A pass is a permutation cut
            into chunks of this size; a remainder is left out, so that every step has the same shape.
        augment: Augmentation in the inner loop, parameters per image; none by default.
        optimizer: How the student moves along its gradient; plain SGD, as the experts do, by default.
        unroll: How to differentiate; exact in constant memory by default.
    """

    def __init__(
        self,
        unroll_steps: int,
        expert_epochs: int,
        max_start_epoch: int,
        synthetic_batch_size: int | None = None,
        augment: DSA | None = None,
        optimizer: InnerOptimizer | None = None,
        unroll: Unroll | None = None,
    ) -> None:
        for name, value in (
            ("unroll_steps", unroll_steps),
            ("expert_epochs", expert_epochs),
            ("max_start_epoch", max_start_epoch),
            ("synthetic_batch_size", synthetic_batch_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"model.objective.{name} must be at least 1, got {value}.")
        self.unroll_steps = unroll_steps
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.synthetic_batch_size = synthetic_batch_size
        self.augment = augment
        self.optimizer = SGD() if optimizer is None else optimizer
        self.unroll = ExactUnroll() if unroll is None else unroll

    def __repr__(self) -> str:
        return (
            f"TrajectoryMatching(unroll_steps={self.unroll_steps}, expert_epochs={self.expert_epochs}, "
            f"max_start_epoch={self.max_start_epoch}, synthetic_batch_size={self.synthetic_batch_size}, "
            f"augment={self.augment}, optimizer={self.optimizer}, unroll={type(self.unroll).__name__})"
        )

    def check(self, num_images: int) -> None:
        if self.synthetic_batch_size is not None and self.synthetic_batch_size > num_images:
            raise ValueError(
                f"model.objective.synthetic_batch_size is {self.synthetic_batch_size}, there are {num_images} "
                "synthetic images."
            )

    def work(self, num_images: int) -> Work:
        size = self.synthetic_batch_size or num_images
        # Students of a full graph ask for losses only, and differentiate them on their own.
        sweeps = 0 if isinstance(self.unroll, FullGraphUnroll) else self.unroll_steps
        return Work(size, gradients=sweeps, sweeps=sweeps)

    def __call__(
        self, derivatives: Derivatives, synthetic: SyntheticImages, segments: Segment, streams: Sequence[Stream]
    ) -> Match:
        size = self.synthetic_batch_size or len(synthetic)
        per_pass = len(synthetic) // size

        def one(images: Tensor, labels: Tensor, step: int, stream: Stream) -> tuple[Tensor, Tensor]:
            x, y = images, labels
            if size < len(synthetic):
                generator = stream.at("order", step // per_pass).generator()
                chunk = torch.randperm(len(synthetic), generator=generator).split(size)[step % per_pass].to(y.device)
                x, y = images[chunk], y[chunk]
            return (x if self.augment is None else self.augment(x, stream.at("augment", step))), y

        def minibatch(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
            x, y = zip(*(one(images, labels, step, stream) for stream in streams), strict=True)
            return torch.stack(x), torch.stack(y)

        start, target = segments
        loop = InnerLoop(derivatives, self.optimizer, minibatch, self.unroll_steps)
        student = self.unroll(loop, synthetic.images, synthetic.targets, synthetic.student_lr, start)
        losses = [parameter_distance(*rows) for rows in zip(student, target, start, strict=True)]
        return Match(torch.stack(losses), student, target)
