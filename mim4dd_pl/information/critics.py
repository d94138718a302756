"""Critics: what is asked of the embeddings of synthetic and real images, layer by layer.

Two critics contrast pairs: they score each by s = <z, z'>, and their loss stands for a lower bound on the mutual
information. One contrasts with prototypes in place of single real images. One is a control that attracts without
contrast and bounds nothing.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mim4dd_pl.information.losses import (
    class_mean_distance,
    class_means,
    infonce_bound,
    infonce_loss,
    nce_bound,
    nce_loss,
    prototype_bound,
    prototype_loss,
    same_class,
)


class Verdict(NamedTuple):
    """A critic's loss on one layer, shape (), and the bound it stands for in nats, shape (), detached.

    The bound is NaN where nothing was measured: without a positive pair, or by a critic that bounds nothing.
    """

    loss: Tensor
    bound: Tensor


class Critic(nn.Module, ABC):
    """Judges the embeddings of one layer; built as ``Class(num_classes, **settings)``.

    Attributes:
        ceiling: The largest value the bound can take on a class-balanced batch, in nats; None if there is no bound.
    """

    ceiling: float | None = None

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor) -> Verdict:
        """Judge unit vectors.

        Args:
            synthetic: z, shape (S, d).
            real: z', shape (R, d).
            synthetic_labels: Shape (S,).
            real_labels: Shape (R,).
        """


class SigmoidCritic(Critic):
    r"""The paper's critic, h = sigmoid(s / tau), with an optional learned temperature and bias.

    With ``learnable`` it is h = sigmoid(s / tau + b) as in SigLIP (Zhai et al. 2023, arXiv:2303.15343): tau stays
    positive because its logarithm is learned, b starts at 0, where both forms agree.

    Args:
        num_classes: C, at least 3: the bound never exceeds ln(C-1).
        temperature: tau, positive; the paper does not state it.
        reduction: ``paper`` as Eq. 2.16, ``mean`` over all pairs.
        learnable: Learn tau and b together with the heads.
    """

    def __init__(
        self,
        num_classes: int,
        temperature: float = 0.1,
        reduction: Literal["paper", "mean"] = "mean",
        learnable: bool = False,
    ) -> None:
        super().__init__(num_classes)
        if num_classes < 3:
            text = "SigmoidCritic needs at least 3 classes, as its bound never exceeds ln(classes - 1)"
            raise ValueError(f"{text}, got {num_classes}: take InfoNCECritic.")
        self.ceiling = math.log(num_classes - 1)
        self.reduction = reduction
        self.log_temperature = _log_temperature(temperature, learnable)
        self.bias = nn.Parameter(torch.tensor(0.0), requires_grad=learnable)

    def forward(self, synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor) -> Verdict:
        positive = same_class(synthetic_labels, real_labels)
        logits = synthetic @ real.T / self.log_temperature.exp() + self.bias  # (S, R)
        loss = nce_loss(logits, positive, self.num_classes, self.reduction)
        return Verdict(loss, nce_bound(logits, positive, self.num_classes))


class InfoNCECritic(Critic):
    """A softmax over the real images for each synthetic one (supervised contrastive).

    Args:
        num_classes: C.
        temperature: tau, positive.
        learnable: Learn tau together with the heads.
    """

    def __init__(self, num_classes: int, temperature: float = 0.1, learnable: bool = False) -> None:
        super().__init__(num_classes)
        self.ceiling = math.log(num_classes)
        self.log_temperature = _log_temperature(temperature, learnable)

    def forward(self, synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor) -> Verdict:
        positive = same_class(synthetic_labels, real_labels)
        logits = synthetic @ real.T / self.log_temperature.exp()  # (S, R)
        return Verdict(infonce_loss(logits, positive), infonce_bound(logits, positive))


class PrototypeCritic(InfoNCECritic):
    r"""A softmax over the classes of the real batch, each with one key: the mean of its real embeddings.

    .. math:: s_{ic} = \langle z_i, m_c \rangle, \qquad
              m_c = \sum_{j: y_j = c} z'_j \,/\, \Big\| \sum_{j: y_j = c} z'_j \Big\|

    The loss is that of :func:`~mim4dd_pl.information.losses.prototype_loss`. A mean has less noise than the real images
    one by one, and images of one class do not compete with each other: perfect features have loss 0.

    Source: prototypical networks, Snell et al. 2017 (arXiv:1703.05175), Eq. 1 and 2; there the distances are Euclidean.

    Args:
        num_classes: C.
        temperature: tau, positive.
        learnable: Learn tau together with the heads.
    """

    def forward(self, synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor) -> Verdict:
        means, present = class_means(real, real_labels, self.num_classes)
        logits = synthetic @ normalize(means).T / self.log_temperature.exp()  # (S, C)
        loss = prototype_loss(logits, synthetic_labels, present)
        return Verdict(loss, prototype_bound(logits, synthetic_labels, present))


class ClassMeanCritic(Critic):
    """The control: draws the class means of both sides together, and contrasts nothing.

    What it gains is gained by matching features and not by information. A head that learns makes the distance small by
    sending all images to one point: give it ``embedding: IdentityHead``, or heads that stay as they are (``lr: 0``).

    Args:
        num_classes: C.
    """

    def forward(self, synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor) -> Verdict:
        loss = class_mean_distance(synthetic, real, synthetic_labels, real_labels, self.num_classes)
        return Verdict(loss, loss.new_tensor(math.nan))


def _log_temperature(temperature: float, learnable: bool) -> nn.Parameter:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")
    return nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learnable)
