"""Distribution matching: features of the synthetic images should have the mean of real ones."""

import torch

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.features import augmented_by_class, feature_distance
from mim4dd_pl.objectives.sampling import fresh, real_batch
from mim4dd_pl.objectives.synthetic import TrainingImages


class DistributionMatching(Objective):
    r"""DM: per class, the mean feature of the synthetic images should be that of real ones, in fresh networks.

    .. math:: L = \sum_c \Big\| \frac{1}{|S_c|} \sum_{x \in S_c} \psi(x)
              - \frac{1}{|T_c|} \sum_{x \in T_c} \psi(x) \Big\|^2

    psi is the last feature map of a network that is initialised anew in each outer step. Labels are not asked for: soft
    ones do not learn.

    Source: Zhao & Bilen 2023 (arXiv:2110.04181), Eq. 5.

    Args:
        real_per_class: Real images of each class.
        augment: Augmentation with one draw for each class, which its synthetic and real images share; none by default.
    """

    def __init__(self, real_per_class: int = 256, augment: DSA | None = None) -> None:
        check_positive(real_per_class=real_per_class)
        self.real_per_class = real_per_class
        self.augment = augment

    def work(self, images_per_class: int, num_classes: int) -> Work:
        size = images_per_class * num_classes
        return Work(size, gradients=0, features=2 * size + self.real_per_class * num_classes)

    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        classes = derivatives.network.num_classes
        students = fresh(derivatives.network, scene.streams, synthetic.images)
        losses = []
        for theta, stream in zip(students, scene.streams, strict=True):
            real, learned = (
                augmented_by_class(images, self.augment, classes, stream)
                for images in (real_batch(scene.real, self.real_per_class, stream).images, synthetic.images)
            )
            losses.append(feature_distance(derivatives, theta, learned, real, classes))
        return Match(torch.stack(losses), students, None)
