"""The learnable data set: images, their labels, and the learning rate that belongs to them."""

import math

import torch
from torch import Tensor, nn

from mim4dd_pl.randomness import Stream
from mim4dd_pl.shapes import ImageShape


class SyntheticImages(nn.Module):
    r"""S, the synthetic images of all classes, with the student's learning rate alpha.

    Labels are 0, .., 0, 1, .., 1, ..: class by class. alpha is a plain parameter in its own units, so published values
    of its learning rate keep their meaning; :meth:`project` keeps it positive after each step.

    Args:
        image_shape: (c, h, w) of one image.
        num_classes: C.
        images_per_class: ipc, at least 1.
        student_lr: Initial alpha, above ``min_student_lr``.
        min_student_lr: Smallest alpha that :meth:`project` leaves, positive.

    Attributes:
        images: Shape (C * ipc, c, h, w), normalised as the training images are; any real number.
        labels: Shape (C * ipc,), int64.
        student_lr: alpha, shape ().
    """

    labels: Tensor

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        images_per_class: int,
        student_lr: float = 0.01,
        min_student_lr: float = 1e-6,
    ) -> None:
        super().__init__()
        if images_per_class < 1:
            raise ValueError(f"model.images_per_class must be at least 1, got {images_per_class}.")
        if not 0 < min_student_lr <= student_lr < math.inf:
            raise ValueError(
                f"model.student_lr must be finite and at least model.min_student_lr, which must be positive; got "
                f"{student_lr} and {min_student_lr}."
            )
        self.images_per_class = images_per_class
        self.min_student_lr = min_student_lr
        self.images = nn.Parameter(torch.zeros(num_classes * images_per_class, *image_shape))
        self.student_lr = nn.Parameter(torch.tensor(float(student_lr)))
        self.register_buffer("labels", torch.arange(num_classes).repeat_interleave(images_per_class))

    def __len__(self) -> int:
        return len(self.labels)

    def start_from_noise(self, stream: Stream) -> None:
        """Standard normal pixels, which is the distribution's scale after normalisation."""
        self.images.data.copy_(torch.randn(self.images.shape, generator=stream.generator()))

    def start_from(self, images: Tensor) -> None:
        """Copies of real images in the order of ``labels``, shape (C * ipc, c, h, w)."""
        self.images.data.copy_(images)

    @torch.no_grad()
    def project(self) -> None:
        """Move alpha back to ``min_student_lr`` if a step took it below."""
        self.student_lr.clamp_(min=self.min_student_lr)
