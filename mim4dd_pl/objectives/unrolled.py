"""Hosts that unroll the student's training on the synthetic images."""

import torch
from torch import Tensor

from mim4dd_pl.augment import DSA
from mim4dd_pl.functional import cross_entropy, parameter_distance
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.objectives.base import Match, Objective
from mim4dd_pl.randomness import Stream
from mim4dd_pl.synthetic import SyntheticImages
from mim4dd_pl.trajectories import Segment
from mim4dd_pl.unroll import ExactUnroll, Unroll


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
        unroll: How to differentiate; exact in constant memory by default.
    """

    def __init__(
        self,
        unroll_steps: int,
        expert_epochs: int,
        max_start_epoch: int,
        synthetic_batch_size: int | None = None,
        augment: DSA | None = None,
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
        self.unroll = ExactUnroll() if unroll is None else unroll

    def __repr__(self) -> str:
        return (
            f"TrajectoryMatching(unroll_steps={self.unroll_steps}, expert_epochs={self.expert_epochs}, "
            f"max_start_epoch={self.max_start_epoch}, synthetic_batch_size={self.synthetic_batch_size}, "
            f"augment={self.augment}, unroll={type(self.unroll).__name__})"
        )

    def check(self, num_images: int) -> None:
        if self.synthetic_batch_size is not None and self.synthetic_batch_size > num_images:
            raise ValueError(
                f"model.objective.synthetic_batch_size is {self.synthetic_batch_size}, there are {num_images} "
                "synthetic images."
            )

    def __call__(self, network: FlatNetwork, synthetic: SyntheticImages, segment: Segment, stream: Stream) -> Match:
        size = self.synthetic_batch_size or len(synthetic)
        per_pass = len(synthetic) // size

        def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(network(theta, images), labels)

        def minibatch(images: Tensor, step: int) -> tuple[Tensor, Tensor]:
            x, y = images, synthetic.labels
            if size < len(synthetic):
                generator = stream.at("order", step // per_pass).generator()
                chunk = torch.randperm(len(synthetic), generator=generator).split(size)[step % per_pass].to(y.device)
                x, y = images[chunk], y[chunk]
            return (x if self.augment is None else self.augment(x, stream.at("augment", step))), y

        student = self.unroll(loss, minibatch, synthetic.images, synthetic.student_lr, segment.start, self.unroll_steps)
        return Match(parameter_distance(student, segment.target, segment.start), student, segment.target)
