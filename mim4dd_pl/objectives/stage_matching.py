"""Stage matching: features should have the means of real ones in networks along an expert's trajectory."""

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Work, cross_entropy
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.features import augmented_by_class, feature_distance
from mim4dd_pl.objectives.sampling import real_batch
from mim4dd_pl.objectives.synthetic import TrainingImages
from mim4dd_pl.stored.segments import Ends, Epochs, Stages


class StageMatching(Objective):
    r"""Per class, the mean feature of the synthetic images should be that of real ones, at a stage of an expert.

    .. math:: L = \sum_c \Big( \big\| \bar\psi_t(S_c) - \bar\psi_t(T_c) \big\|^2 + a\, CE(\theta_{t'}(S_c)) \Big)

    psi_t is the last feature map of an expert after epoch t, drawn anew for each segment. The constraint wants the same
    expert at a later epoch t' to put the synthetic images in their classes. The information term is shown the later
    network.

    Source: Ran et al. 2026, TGDD (arXiv:2512.02469).

    Args:
        last_epoch: E; experts are read up to this epoch.
        gap: t' lies in t..min(t + gap, E), uniformly.
        real_per_class: Real images of each class.
        augment: Augmentation with one draw for each class, which its synthetic and real images share; none by default.
        constraint: a, at least 0; the mean cross-entropy of a class, added up over the classes, is multiplied with it.
    """

    epochs: Epochs

    def __init__(
        self,
        last_epoch: int,
        gap: int = 6,
        real_per_class: int = 128,
        augment: DSA | None = None,
        constraint: float = 0.0,
    ) -> None:
        check_positive(real_per_class=real_per_class)
        if not 0 <= constraint < float("inf"):
            raise ValueError(f"constraint must be at least 0 and finite, got {constraint}.")
        self.epochs = Stages(last_epoch, gap)
        self.real_per_class = real_per_class
        self.augment = augment
        self.constraint = constraint

    def work(self, images_per_class: int, num_classes: int) -> Work:
        size = images_per_class * num_classes
        learned = (4 if self.constraint else 2) * size  # forward and back, in one network or two
        return Work(size, gradients=0, features=learned + self.real_per_class * num_classes)

    def stage(self, first: Tensor, last: Tensor, stream: Stream) -> Tensor:
        """Parameters (P,) of the network whose features are matched, of an expert's two epochs."""
        return first

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        classes, losses = derivatives.network.num_classes, []
        for first, last, stream in zip(*scene.segments, scene.streams, strict=True):
            real, learned = (
                augmented_by_class(images, self.augment, classes, stream)
                for images in (real_batch(scene.real, self.real_per_class, stream).images, synthetic.images)
            )
            loss = feature_distance(derivatives, self.stage(first, last, stream), learned, real, classes)
            if self.constraint:
                shown = derivatives.logits(last, learned)
                loss = loss + self.constraint * classes * cross_entropy(shown, synthetic.targets)
            losses.append(loss)
        return Match(torch.stack(losses), scene.segments.target, scene.segments.target)


class InterpolatedStageMatching(StageMatching):
    r"""The same at stages between an expert's first and last epoch, with the last one as the later network.

    .. math:: \theta_t = \lambda\, \theta_0 + (1 - \lambda)\, \theta_E, \quad \lambda \sim U(0, 1)

    Source: Zhang et al. 2024, DANCE (arXiv:2406.01063).

    Args:
        last_epoch: E, at least 1.
        real_per_class: Real images of each class.
        augment: As for :class:`StageMatching`.
        constraint: a, at least 0.
    """

    def __init__(
        self, last_epoch: int, real_per_class: int = 128, augment: DSA | None = None, constraint: float = 0.0
    ) -> None:
        super().__init__(last_epoch, real_per_class=real_per_class, augment=augment, constraint=constraint)
        self.epochs = Ends(last_epoch)

    def stage(self, first: Tensor, last: Tensor, stream: Stream) -> Tensor:
        weight = torch.rand((), generator=stream.at("stage").generator()).to(first)
        return weight * first + (1 - weight) * last
