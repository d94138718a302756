"""Gradient matching: the synthetic images should move a network as real ones do."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Work, soft
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.losses import gradient_distance
from mim4dd_pl.objectives.sampling import fresh, real_batch
from mim4dd_pl.objectives.synthetic import TrainingImages


class GradientMatching(Objective):
    r"""DC, and DSA where it augments: per class, the gradient on synthetic images should point as that on real ones.

    .. math:: L = \sum_c D\big(\nabla_\theta CE(\theta; S_c),\ \nabla_\theta CE(\theta; T_c)\big)

    with D of :func:`~mim4dd_pl.objectives.losses.gradient_distance`. The network is fresh, or was trained on S before:
    for a random number of steps in 0..``student_steps``, at the student learning rate. The published code takes the
    network along while S changes; here it is trained anew on S as it is, so that a step depends on S and its number
    alone. Its preset for 1 image per class is a fresh network, as by default here.

    Source: Zhao et al. 2021 (arXiv:2006.05929), Eq. 7-9; with ``augment`` Zhao & Bilen 2021 (arXiv:2102.08259), Eq. 4.

    Args:
        real_per_class: Real images of each class.
        student_steps: Steps of training on S before the match, at most.
        augment: Augmentation with one draw for each class, which its synthetic and real images share; none by default.
    """

    def __init__(self, real_per_class: int = 256, student_steps: int = 0, augment: DSA | None = None) -> None:
        check_positive(real_per_class=real_per_class)
        if student_steps < 0:
            raise ValueError(f"student_steps must be at least 0, got {student_steps}.")
        self.real_per_class = real_per_class
        self.student_steps = student_steps
        self.augment = augment

    def work(self, images_per_class: int, num_classes: int) -> Work:
        return Work(images_per_class, gradients=num_classes, sweeps=num_classes)

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        students = fresh(derivatives.network, scene.streams, synthetic.images)
        trained, losses = [], []
        for theta, stream in zip(students, scene.streams, strict=True):
            trained.append(self._trained(derivatives, synthetic, theta, stream))
            losses.append(self._loss(derivatives, synthetic, trained[-1], scene, stream))
        return Match(torch.stack(losses), torch.stack(trained), None)

    def _trained(self, derivatives: Derivatives, synthetic: TrainingImages, theta: Tensor, stream: Stream) -> Tensor:
        steps = int(torch.randint(self.student_steps + 1, (), generator=stream.at("steps").generator()))
        images, labels = synthetic.images.detach()[None], synthetic.targets.detach()[None]
        for _ in range(steps):
            theta = theta - synthetic.student_lr.detach() * derivatives.gradient(theta[None], images, labels)[0]
        return theta

    def _loss(
        self, derivatives: Derivatives, synthetic: TrainingImages, theta: Tensor, scene: Scene, stream: Stream
    ) -> Tensor:
        network, classes = derivatives.network, derivatives.network.num_classes
        batch = real_batch(scene.real, self.real_per_class, stream)
        sides = (synthetic.images, synthetic.targets, batch.images, batch.labels)
        loss = synthetic.images.new_zeros(())
        for label, (x, y, x_real, y_real) in enumerate(zip(*(side.chunk(classes) for side in sides), strict=True)):
            if self.augment is not None:
                x, x_real = (self.augment.siamese(part, stream.at("augment", label)) for part in (x, x_real))
            target = derivatives.gradient(theta[None], x_real[None], y_real[None])[0]
            moved: Tensor = _Gradient.apply(x[None], y[None], theta[None], derivatives)[0]
            ours, theirs = (network.unflatten(vector).values() for vector in (moved, target))
            loss = loss + gradient_distance(list(ours), list(theirs))
        return loss


class _Gradient(torch.autograd.Function):
    """g of K networks as a function of images and soft labels: back by one sweep, without a graph of the network."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, labels: Tensor, theta: Tensor, derivatives: Derivatives) -> Tensor:
        ctx.save_for_backward(images, labels, theta)
        ctx.derivatives = derivatives
        return derivatives.gradient(theta, images, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        images, labels, theta = ctx.saved_tensors
        swept = ctx.derivatives.sweep(theta, images, labels, cotangent, along_theta=False)
        return swept.images, swept.labels if soft(labels) else None, None, None
