r"""The information term: a layer-wise contrastive lower bound on I(real; synthetic), as an add-on to any host.

For each of K layers a head g_phi embeds the feature maps of synthetic and real images; a critic scores every pair;
pairs of one class are positives. The term is the weighted sum of the layers' losses, Eq. 2.17 of Shang et al. 2023
(arXiv:2312.16627). Treating layers as invertible maps, which lets the bound move from images to features, is a
heuristic: ReLU and pooling lose information.

Not done here: which networks show the features is chosen in :meth:`InformationTerm.features_of`; how the term's
gradient meets the host's is the module's business (:func:`mim4dd_pl.functional.balance`).
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mim4dd_pl.functional import balance, infonce_bound, infonce_loss, layer_weights, nce_bound, nce_loss, same_class
from mim4dd_pl.heads import LinearHead
from mim4dd_pl.shapes import ImageShape

_log = logging.getLogger(__name__)


class Critic(nn.Module, ABC):
    """Scores pairs of embeddings: a loss to minimise and the bound it stands for.

    Both take similarities s (S, R) in [-1, 1] and D (S, R), and return shape ().
    """

    @abstractmethod
    def loss(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        """Contrastive loss in nats."""

    @abstractmethod
    def bound(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        """Lower bound on the mutual information in nats, detached."""

    @abstractmethod
    def ceiling(self, num_classes: int) -> float:
        """The largest value the bound can take on a class-balanced batch, in nats."""


class SigmoidCritic(Critic):
    r"""The paper's critic, h = sigmoid(s / tau), with an optional learned temperature and bias.

    With ``learnable`` it is h = sigmoid(s / tau + b) as in SigLIP (Zhai et al. 2023, arXiv:2303.15343): tau stays
    positive because its logarithm is learned, b starts at 0, where both forms agree.

    Args:
        temperature: tau, positive; the paper does not state it.
        reduction: ``paper`` as Eq. 2.16, ``mean`` over all pairs.
        learnable: Learn tau and b together with the heads.
    """

    def __init__(
        self, temperature: float = 0.1, reduction: Literal["paper", "mean"] = "mean", learnable: bool = False
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.log_temperature = nn.Parameter(torch.tensor(_log_temperature(temperature)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(0.0), requires_grad=learnable)

    def _logits(self, similarity: Tensor) -> Tensor:
        return similarity / self.log_temperature.exp() + self.bias

    def loss(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        return nce_loss(self._logits(similarity), positive, num_classes, self.reduction)

    def bound(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        return nce_bound(self._logits(similarity), positive, num_classes)

    def ceiling(self, num_classes: int) -> float:
        return math.log(num_classes - 1)


class InfoNCECritic(Critic):
    """A softmax over the real images for each synthetic one (supervised contrastive).

    Args:
        temperature: tau, positive.
        learnable: Learn tau together with the heads.
    """

    def __init__(self, temperature: float = 0.1, learnable: bool = False) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(_log_temperature(temperature)), requires_grad=learnable)

    def loss(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        return infonce_loss(similarity / self.log_temperature.exp(), positive)

    def bound(self, similarity: Tensor, positive: Tensor, num_classes: int) -> Tensor:
        return infonce_bound(similarity / self.log_temperature.exp(), positive)

    def ceiling(self, num_classes: int) -> float:
        return math.log(num_classes)


class Information(NamedTuple):
    """The term's value, shape (), and the bound of each layer in nats, shape (K,)."""

    loss: Tensor
    bounds: Tensor


class InformationTerm(nn.Module):
    r"""Heads, critic and layer weights.

    .. math:: \sum_{k=1}^{K} L_k \,/\, \beta^{K-1-k}

    Args:
        layer_shapes: (c_k, h_k, w_k) of the K feature maps, shallow to deep.
        num_classes: C, at least 2; with C = 2 the sigmoid critic's bound is void (its ceiling is 0).
        critic: Scores pairs; :class:`InfoNCECritic` by default (the choice that never clearly hurt).
        embedding: Builds the head of a layer from its shape.
        weight: lambda, at least 0. With ``balance="gradient"`` the term's pixel gradient is this share of the host's.
        balance: ``gradient`` rescales the term by gradient norms, ``literal`` is the paper's weighted sum.
        layer_decay: beta, at least 1.
        networks: ``expert`` or ``student``: that network shows the features of both sides. ``own``, the paper's:
            synthetic images go through the student, real ones through the expert.
        through_student: Let the gradient also flow through the student's weights to the images that trained it.
        real_batch_size: Real images per step, dealt to its segments.
        lr: Adam's learning rate for heads and critic.
    """

    def __init__(
        self,
        layer_shapes: Sequence[ImageShape],
        num_classes: int,
        critic: Critic | None = None,
        embedding: Callable[[ImageShape], nn.Module] = LinearHead,
        weight: float = 0.3,
        balance: Literal["gradient", "literal"] = "gradient",
        layer_decay: float = 2.0,
        networks: Literal["expert", "student", "own"] = "expert",
        through_student: bool = False,
        real_batch_size: int = 256,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        critic = InfoNCECritic() if critic is None else critic
        if num_classes < 2:
            raise ValueError(f"The information term contrasts classes and needs at least 2, got {num_classes}.")
        if not 0 <= weight < math.inf:
            raise ValueError(f"model.information.weight must be at least 0 and finite, got {weight}.")
        if not 1 <= layer_decay < math.inf:
            raise ValueError(f"model.information.layer_decay must be at least 1 and finite, got {layer_decay}.")
        if real_batch_size < 1 or not 0 < lr < math.inf:
            raise ValueError(
                f"model.information.real_batch_size must be at least 1 and model.information.lr positive, got "
                f"{real_batch_size} and {lr}."
            )
        if through_student and networks == "expert":
            raise ValueError(
                "model.information.through_student needs the student's features: set model.information.networks to "
                "student or own."
            )
        self.num_classes = num_classes
        self.ceiling = critic.ceiling(num_classes)
        if self.ceiling <= 0:
            _log.warning("With %d classes the bound of %s is void.", num_classes, type(critic).__name__)
        self.critic = critic
        self.heads = nn.ModuleList([embedding(shape) for shape in layer_shapes])
        self.weight = weight
        self.balance = balance
        self.networks = networks
        self.through_student = through_student
        self.real_batch_size = real_batch_size
        self.lr = lr
        self.layer_weights: Tensor
        self.register_buffer("layer_weights", layer_weights(len(layer_shapes), layer_decay), persistent=False)

    def factor(self, host: Tensor, term: Tensor) -> Tensor:
        """What the term's gradient is multiplied with, shape (): lambda, or what makes it that share of the host's.

        Args:
            host: The host's gradient on the pixels.
            term: The term's, of the same shape.
        """
        return host.new_tensor(self.weight) if self.balance == "literal" else balance(host, term, self.weight)

    def features_of(self, student: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters, each (P,), through which synthetic and real images are seen.

        Args:
            student: theta_N, with its graph.
            expert: theta*_{t+M}.
        """
        if not self.through_student:
            student = student.detach()
        return {"expert": (expert, expert), "student": (student, student), "own": (student, expert)}[self.networks]

    def forward(
        self,
        synthetic: Sequence[Tensor],
        real: Sequence[Tensor],
        synthetic_labels: Tensor,
        real_labels: Tensor,
    ) -> Information:
        """The term on one pair of batches.

        Args:
            synthetic: K feature maps of the synthetic images, each (S, c_k, h_k, w_k).
            real: K feature maps of the real images, each (R, c_k, h_k, w_k).
            synthetic_labels: Shape (S,).
            real_labels: Shape (R,).
        """
        positive = same_class(synthetic_labels, real_labels)
        losses, bounds = [], []
        for head, a_syn, a_real in zip(self.heads, synthetic, real, strict=True):
            similarity = head(a_syn) @ head(a_real).T  # (S, R), in [-1, 1]
            losses.append(self.critic.loss(similarity, positive, self.num_classes))
            bounds.append(self.critic.bound(similarity, positive, self.num_classes))
        return Information(torch.stack(losses) @ self.layer_weights, torch.stack(bounds))


def _log_temperature(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise ValueError(f"model.information.critic.temperature must be positive and finite, got {temperature}.")
    return math.log(temperature)
