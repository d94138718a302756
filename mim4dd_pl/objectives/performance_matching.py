"""Performance matching: students trained on the synthetic images should classify real ones."""

import copy

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.engine.optimizers import InnerOptimizer, Momentum
from mim4dd_pl.engine.unroll import ExactUnroll, InnerLoop, Unroll
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.sampling import Chunks, check_size, fresh, real_batch
from mim4dd_pl.objectives.synthetic import TrainingImages


class PerformanceMatching(Objective):
    r"""BPTT: the cross-entropy on real images of a student that was trained on the synthetic ones from scratch.

    .. math:: L = CE(\theta_N; X_{real}),\qquad \theta_0 \text{ fresh}

    With a ``window`` of W steps it is RaT-BPTT: the student is trained for a random number of steps in W..N, of which
    the last W are differentiated.

    Source: Deng & Russakovsky 2022 (arXiv:2206.02916), Section 3; Feng et al. 2024 (arXiv:2311.07025), Algorithm 1.

    Args:
        unroll_steps: N, at least 1.
        window: W, at most N; all steps by default.
        real_per_class: Real images of each class that the student is tested on, another draw in each outer step.
        synthetic_batch_size: Synthetic images per inner step, a multiple of the classes, as many of each; all of them
            by default.
        augment: Augmentation: one draw for an outer step, which all its synthetic and real images share; none by
            default.
        optimizer: How the student moves along its gradient; momentum 0.9 by default.
        unroll: How to differentiate; exact in constant memory by default.
    """

    def __init__(
        self,
        unroll_steps: int,
        window: int | None = None,
        real_per_class: int = 64,
        synthetic_batch_size: int | None = None,
        augment: DSA | None = None,
        optimizer: InnerOptimizer | None = None,
        unroll: Unroll | None = None,
    ) -> None:
        check_positive(unroll_steps=unroll_steps, window=window)
        check_positive(real_per_class=real_per_class, synthetic_batch_size=synthetic_batch_size)
        if window is not None and window > unroll_steps:
            raise ValueError(f"window must be at most unroll_steps, got {window} and {unroll_steps}.")
        self.unroll_steps = unroll_steps
        self.window = window
        self.real_per_class = real_per_class
        self.synthetic_batch_size = synthetic_batch_size
        self.augment = augment
        self.optimizer = Momentum() if optimizer is None else optimizer
        self.unroll = ExactUnroll() if unroll is None else unroll

    def check(self, images_per_class: int, num_classes: int) -> None:
        check_size(self.synthetic_batch_size, images_per_class * num_classes)
        if (size := self.synthetic_batch_size or 0) % num_classes:
            raise ValueError(f"synthetic_batch_size must be a multiple of the {num_classes} classes, got {size}.")

    def work(self, images_per_class: int, num_classes: int) -> Work:
        size = self.synthetic_batch_size or images_per_class * num_classes
        window = self.window or self.unroll_steps
        return self.unroll.work(size, (window + self.unroll_steps) // 2, window)

    def shortened(self, steps: int, batch_size: int) -> "PerformanceMatching":
        short = copy.copy(self)
        short.unroll_steps, short.synthetic_batch_size = min(steps, self.unroll_steps), batch_size
        short.window = None if self.window is None else min(steps, self.window)
        return short

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        size, classes = self.synthetic_batch_size or len(synthetic.labels), derivatives.network.num_classes
        minibatch = Chunks(size, scene.streams, self._augmented, balanced=True, num_classes=classes)
        steps = self._steps(scene.step)
        window = range(steps - (self.window or steps), steps)
        loop = InnerLoop(derivatives, self.optimizer, minibatch, steps, window)
        start = fresh(derivatives.network, scene.streams, synthetic.images)
        student = self.unroll(loop, synthetic.images, synthetic.targets, synthetic.student_lr, start)
        real = [real_batch(scene.real, self.real_per_class, stream) for stream in scene.streams]
        images = [self._augmented(batch.images, stream) for batch, stream in zip(real, scene.streams, strict=True)]
        loss = derivatives.loss(student, torch.stack(images), torch.stack([batch.labels for batch in real]))
        return Match(loss, student, None)

    def _steps(self, stream: Stream) -> int:
        """How long the students of an outer step are trained."""
        shortest = self.window or self.unroll_steps
        spare = torch.randint(self.unroll_steps - shortest + 1, (), generator=stream.at("steps").generator())
        return shortest + int(spare)

    def _augmented(self, images: Tensor, stream: Stream, step: int = 0) -> Tensor:
        return images if self.augment is None else self.augment.siamese(images, stream.at("augment"))
