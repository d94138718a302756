"""The learnable data set: images, their labels, and the learning rate that belongs to them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.formation import check_formation, decode, mix


@dataclass(frozen=True)
class SoftLabels:
    """Labels that are learned as logits, together with the images.

    Args:
        lr: Learning rate of the logits.
    """

    lr: float

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"lr must be at least 0 and finite, got {self.lr}.")


class TrainingImages(NamedTuple):
    """What students train on: the decoded synthetic images, with their graph.

    Args:
        images: Shape (S, c, h, w), class by class, the same number of each.
        labels: The class of each, shape (S,), int64.
        targets: The same classes, or soft labels, shape (S, C).
        student_lr: alpha, shape ().
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    student_lr: Tensor


class SyntheticImages(nn.Module):
    r"""The synthetic images of all classes as they are learned and stored, with the student's learning rate alpha.

    With a formation f each stored image is a canvas of f x f tiles, which :meth:`decoded` turns into f^2 training
    images. Labels are 0, .., 0, 1, .., 1, ..: class by class. alpha is a plain parameter in its own units, so published
    values of its learning rate keep their meaning; :meth:`settle` keeps it positive after each step.

    Args:
        image_shape: (c, h, w) of one image.
        num_classes: C.
        images_per_class: ipc, stored images of each class, at least 1.
        student_lr: Initial alpha, above ``min_student_lr``.
        min_student_lr: Smallest alpha that :meth:`settle` leaves, positive.
        soft: Learn soft labels; they start uniform.
        image_average: Decay of a moving average of the images, in [0, 1), which is then the result (FTD, Du et al.
            2023, arXiv:2211.11004); none by default.
        formation: f, tiles a side of each stored image; 1, whole images, by default.

    Attributes:
        images: Shape (C * ipc, c, h, w), normalised as the training images are; any real number.
        labels: The class of each image, shape (C * ipc,), int64.
        label_logits: Logits of the soft labels of the decoded images, shape (C * ipc * f^2, C), if there are any.
        student_lr: alpha, shape ().
        limits: Smallest and largest value of each channel that :meth:`settle` leaves, shape (2, c, 1, 1); None where
            pixels are free.
    """

    labels: Tensor
    averaged: Tensor | None
    limits: Tensor | None

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        images_per_class: int,
        student_lr: float = 0.01,
        min_student_lr: float = 1e-6,
        soft: bool = False,
        image_average: float | None = None,
        formation: int = 1,
    ) -> None:
        super().__init__()
        check_positive(images_per_class=images_per_class)
        check_formation(formation, image_shape)
        if not 0 < min_student_lr <= student_lr < math.inf:
            text = "student_lr must be finite and at least min_student_lr, which must be positive"
            raise ValueError(f"{text}; got {student_lr} and {min_student_lr}.")
        if image_average is not None and not 0 <= image_average < 1:
            raise ValueError(f"image_average must lie in [0, 1), got {image_average}.")
        self.images_per_class, self.formation = images_per_class, formation
        self.decoded_per_class = images_per_class * formation**2
        self.image_average = image_average
        self.min_student_lr = min_student_lr
        self.images = nn.Parameter(torch.zeros(num_classes * images_per_class, *image_shape))
        self.register_buffer("averaged", None if image_average is None else torch.zeros_like(self.images.data))
        decoded = num_classes * self.decoded_per_class
        self.label_logits = nn.Parameter(torch.zeros(decoded, num_classes)) if soft else None
        self.student_lr = nn.Parameter(torch.tensor(float(student_lr)))
        self.register_buffer("labels", torch.arange(num_classes).repeat_interleave(images_per_class))
        self.register_buffer("limits", None, persistent=False)

    def decoded(self) -> TrainingImages:
        """What students train on, with a graph to the parameters; without a formation the images themselves."""
        labels = self.labels.repeat_interleave(self.formation**2)
        targets = labels if self.label_logits is None else self.label_logits.softmax(1)
        return TrainingImages(decode(self.images, self.formation), labels, targets, self.student_lr)

    def start_from_noise(self, stream: Stream) -> None:
        """Standard normal pixels, which is the distribution's scale after normalisation."""
        self.start_from(torch.randn(self.images.shape, generator=stream.generator()))

    def start_from_real(self, images: Tensor) -> None:
        """Copies of real images, class by class, shape (C * ipc * f^2, c, h, w): whole, or as tiles."""
        self.start_from(mix(images, self.formation))

    def start_from(self, images: Tensor) -> None:
        """Copies of images in the order of ``labels``, shape (C * ipc, c, h, w)."""
        self.images.data.copy_(images)
        if self.averaged is not None:
            self.averaged.copy_(images)

    def start_labels_from(self, logits: Tensor) -> None:
        """Soft labels as a network sees the decoded images, shape (C * ipc * f^2, C), none of them for a wrong class.

        Where the network is wrong, the logit of the true class and the largest one change places.

        Source: Guo et al. 2024 (arXiv:2310.05773), who leave out the images that the network gets wrong.
        """
        if self.label_logits is None:
            raise RuntimeError("There are no soft labels to start.")
        true, taken = self.decoded().labels[:, None], logits.argmax(1, keepdim=True)
        moved = logits.scatter(1, taken, logits.gather(1, true))
        self.label_logits.data.copy_(moved.scatter(1, true, logits.gather(1, taken)))

    @property
    def result(self) -> Tensor:
        """The images to evaluate and to keep, shape (C * ipc, c, h, w), detached: their average, if there is one."""
        return self.images.detach() if self.averaged is None else self.averaged

    @torch.no_grad()
    def settle(self) -> None:
        """After a step: alpha and pixels back into their range, the images into their average."""
        self.student_lr.clamp_(min=self.min_student_lr)
        if self.limits is not None:
            torch.clamp(self.images, *self.limits, out=self.images.data)
        if self.averaged is not None and self.image_average is not None:
            self.averaged.lerp_(self.images, 1 - self.image_average)
