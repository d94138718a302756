"""What hosts that match features share: classes augmented alike, and the distance of their mean features."""

import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.objectives.losses import mean_discrepancy


def augmented_by_class(images: Tensor, augment: DSA | None, num_classes: int, stream: Stream) -> Tensor:
    """Images (B, c, h, w), class by class, with one draw for each class: sets given the same ``stream`` share it."""
    if augment is None:
        return images
    parts = enumerate(images.chunk(num_classes))
    return torch.cat([augment.siamese(part, stream.at("augment", label)) for label, part in parts])


def feature_distance(
    derivatives: Derivatives, theta: Tensor, synthetic: Tensor, real: Tensor, num_classes: int
) -> Tensor:
    r"""Squared distance of the mean features of each class, added up.

    .. math:: \sum_c \Big\| \frac{1}{|S_c|} \sum_{x \in S_c} \psi(x) - \frac{1}{|T_c|} \sum_{x \in T_c} \psi(x) \Big\|^2

    psi is the last feature map. No gradient goes through the real side.

    Args:
        derivatives: Of the network.
        theta: Its parameters, shape (P,).
        synthetic: Images, class by class, the same number of each, shape (S, c, h, w).
        real: Likewise, shape (R, c, h, w).
        num_classes: C.

    Returns:
        Shape ().
    """
    with torch.no_grad():
        wanted = derivatives.features(theta, real)
    learned = derivatives.features(theta, synthetic)
    pairs = zip(learned.chunk(num_classes), wanted.chunk(num_classes), strict=True)
    return torch.stack([mean_discrepancy(*pair) for pair in pairs]).sum()
