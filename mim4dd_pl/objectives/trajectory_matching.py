"""Trajectory matching: students should go where experts went."""

import copy

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.engine.optimizers import SGD, InnerOptimizer
from mim4dd_pl.engine.unroll import ExactUnroll, InnerLoop, Unroll
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.losses import parameter_distance
from mim4dd_pl.objectives.sampling import Chunks, check_size
from mim4dd_pl.objectives.synthetic import TrainingImages
from mim4dd_pl.stored.segments import MovingWindow, Spans


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
        moving: Start epochs that grow later during the run (DATM); uniform from the first step on by default.
        ignored_fraction: Shallowest part of the parameters that is not compared, in [0, 1); 0 by default.
            Source: Li et al. 2024, PAD (arXiv:2408.03360), who match deep layers only.
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
        moving: MovingWindow | None = None,
        ignored_fraction: float = 0.0,
    ) -> None:
        check_positive(unroll_steps=unroll_steps, synthetic_batch_size=synthetic_batch_size)
        if not 0 <= ignored_fraction < 1:
            raise ValueError(f"ignored_fraction must lie in [0, 1), got {ignored_fraction}.")
        self.unroll_steps = unroll_steps
        self.epochs = Spans(max_start_epoch, expert_epochs, moving)
        self.synthetic_batch_size = synthetic_batch_size
        self.augment = augment
        self.optimizer = SGD() if optimizer is None else optimizer
        self.unroll = ExactUnroll() if unroll is None else unroll
        self.ignored_fraction = ignored_fraction

    def check(self, images_per_class: int, num_classes: int) -> None:
        check_size(self.synthetic_batch_size, images_per_class * num_classes)

    def work(self, images_per_class: int, num_classes: int) -> Work:
        size = self.synthetic_batch_size or images_per_class * num_classes
        return self.unroll.work(size, self.unroll_steps, window=self.unroll_steps)

    def shortened(self, steps: int, batch_size: int) -> "TrajectoryMatching":
        short = copy.copy(self)
        short.unroll_steps, short.synthetic_batch_size = min(steps, self.unroll_steps), batch_size
        return short

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        start, target = scene.segments
        minibatch = Chunks(self.synthetic_batch_size or len(synthetic.labels), scene.streams, self._augmented)
        loop = InnerLoop(derivatives, self.optimizer, minibatch, self.unroll_steps)
        student = self.unroll(loop, synthetic.images, synthetic.targets, synthetic.student_lr, start)
        first = int(self.ignored_fraction * start.shape[1])
        compared = (rows[:, first:] for rows in (student, target, start))
        losses = [parameter_distance(*rows) for rows in zip(*compared, strict=True)]
        return Match(torch.stack(losses), student, target)

    def _augmented(self, images: Tensor, stream: Stream, step: int) -> Tensor:
        return images if self.augment is None else self.augment(images, stream.at("augment", step))
