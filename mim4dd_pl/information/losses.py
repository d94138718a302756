"""The formulas of the information term as pure functions.

Symbols: S synthetic and R real images; ``num_classes`` is C, at least 2; ``logits`` s / tau, similarities over a
temperature, shape (S, R); ``positive`` D, shape (S, R), bool: whether the classes of a pair agree. Losses and bounds
are in nats, of shape (), bounds detached. Nothing here holds state or draws random numbers.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot


def same_class(synthetic_labels: Tensor, real_labels: Tensor) -> Tensor:
    """D of every pair: True where the classes agree; (S,) and (R,) give (S, R), bool."""
    return synthetic_labels[:, None] == real_labels[None, :]


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``; zero, with zero gradient, where it selects nothing."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def nce_loss(logits: Tensor, positive: Tensor, num_classes: int, reduction: Literal["paper", "mean"]) -> Tensor:
    r"""Contrastive loss of one layer with the critic h = sigmoid(logit).

    .. math:: L_k = -\big(E_{D=1}[\log h] + (C-1)\,E_{D=0}[\log(1-h)]\big)

    At logit 0 it is C ln 2 (``paper``) or ln 2 (``mean``, where every pair counts once). A batch without positives
    or without negatives contributes zero for the missing part.

    Source: Shang et al. 2023 (arXiv:2312.16627), Eq. 2.15 and 2.16; the sign is explicit because the paper prints the
    quantity to maximise. In log space, because exp-then-divide overflows at small temperatures.

    Args:
        reduction: ``paper`` weighs as the equation, ``mean`` averages over all pairs.
    """
    if reduction == "mean":
        return -torch.where(positive, logsigmoid(logits), logsigmoid(-logits)).mean()
    attraction = _mean_where(logsigmoid(logits), positive)
    repulsion = _mean_where(logsigmoid(-logits), ~positive)
    return -(attraction + (num_classes - 1) * repulsion)


def nce_bound(logits: Tensor, positive: Tensor, num_classes: int) -> Tensor:
    r"""Lower bound on the mutual information of real and synthetic features of one layer.

    .. math:: I \ge \log(C-1) + E_{D=1}[\log h]

    It saturates at ln(C-1) and is void (never positive) for C = 2. NaN when the batch has no positive pair: nothing
    was measured.

    Source: Shang et al. 2023 (arXiv:2312.16627), Eq. 2.14.
    """
    return math.log(num_classes - 1) + logsigmoid(logits.detach())[positive].mean()


def infonce_loss(logits: Tensor, positive: Tensor) -> Tensor:
    r"""Supervised contrastive loss: each synthetic image tells its own class's real images from all others.

    .. math:: L_k = -\frac{1}{|I|} \sum_{i \in I} \frac{1}{|P_i|} \sum_{j \in P_i}
              \log \frac{e^{s_{ij}/\tau}}{\sum_r e^{s_{ir}/\tau}}

    P_i are the real images of i's class, I the synthetic images that have any. At constant logits it is ln R; its
    minimum is the mean of ln |P_i|. Zero, with zero gradient, when I is empty.

    Source: Khosla et al. 2020 (arXiv:2004.11362), Eq. 2, with synthetic anchors and real candidates; the softmax form
    of the bound is van den Oord et al. 2018 (arXiv:1807.03748).
    """
    log_share = logits.log_softmax(1)
    counts = positive.sum(1)
    per_anchor = torch.where(positive, log_share, 0).sum(1) / counts.clamp(min=1)
    return -per_anchor.sum() / (counts > 0).sum().clamp(min=1)


def infonce_bound(logits: Tensor, positive: Tensor) -> Tensor:
    r"""Lower bound on the mutual information from the softmax critic.

    .. math:: I \ge \ln R - L_k

    An estimate: it saturates at the mean of ln(R / |P_i|), which is ln C for a class-balanced real batch and scatters
    around it for a random one. NaN when the batch has no positive pair.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), Eq. 10; R is the number of candidates.
    """
    bound = math.log(logits.shape[1]) - infonce_loss(logits.detach(), positive)
    return torch.where(positive.any(), bound, torch.nan)


def class_means(points: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the points (N, d) of each class, shape (C, d), zero where it has none; and whether it has any, (C,)."""
    members = one_hot(labels, num_classes).to(points)  # (N, C)
    counts = members.sum(0)
    return members.T @ points / counts.clamp(min=1)[:, None], counts > 0


def prototype_loss(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    r"""Each synthetic image tells the prototype of its own class from those of the others.

    .. math:: L_k = -\frac{1}{|I|} \sum_{i \in I} \log \frac{e^{s_{iy_i}/\tau}}{\sum_{c \in B} e^{s_{ic}/\tau}}

    B are the classes of the real batch, I the synthetic images of these classes. At constant logits it is ln |B|, its
    minimum is 0. Zero, with zero gradient, when I is empty.

    Source: Snell et al. 2017 (arXiv:1703.05175), Eq. 2, with cosines for squared distances.

    Args:
        logits: s / tau, similarities to the prototypes over a temperature, shape (S, C).
        labels: y, shape (S,), int64 in 0..C-1.
        present: Whether a class is in B, shape (C,), bool; the logits of others are not read.
    """
    positive = one_hot(labels, logits.shape[1]).bool() & present
    return infonce_loss(logits.masked_fill(~present, -math.inf), positive)


def prototype_bound(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    r"""Lower bound on the mutual information of synthetic features and the class.

    .. math:: I \ge \ln |B| - L_k

    An estimate, as the prototypes come from a batch. It saturates at ln |B|, which is ln C where the batch has all
    classes. NaN when no synthetic image has its class there. Arguments as of :func:`prototype_loss`.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), Eq. 10; |B| is the number of candidates.
    """
    bound = present.sum().log() - prototype_loss(logits.detach(), labels, present)
    return torch.where(present[labels].any(), bound, torch.nan)


def class_mean_distance(
    synthetic: Tensor, real: Tensor, synthetic_labels: Tensor, real_labels: Tensor, num_classes: int
) -> Tensor:
    r"""Squared distance of the class means of synthetic and real embeddings: attraction without contrast.

    .. math:: L_k = \frac{1}{|B|} \sum_{c \in B} \Big\| \frac{1}{|S_c|} \sum_{i \in S_c} z_i
              - \frac{1}{|R_c|} \sum_{j \in R_c} z'_j \Big\|^2

    S_c and R_c are the images of class c, B the classes that both sides have. Zero where the means agree, at most 4 on
    the unit sphere. Zero, with zero gradient, when B is empty.

    Source: the discrepancy of Zhao & Bilen 2023 (arXiv:2110.04181), averaged over classes instead of added.

    Args:
        synthetic: z, shape (S, d).
        real: z', shape (R, d).
        synthetic_labels: Shape (S,), int64 in 0..C-1.
        real_labels: Shape (R,), the same.
        num_classes: C.
    """
    ours, in_ours = class_means(synthetic, synthetic_labels, num_classes)
    theirs, in_theirs = class_means(real, real_labels, num_classes)
    return _mean_where((ours - theirs).square().sum(1), in_ours & in_theirs)


def layer_weights(num_layers: int, layer_decay: float) -> Tensor:
    r"""Weights of the layers in the sum of Eq. 2.17, deeper layers weighing more.

    .. math:: w_k = \beta^{-(K-1-k)},\quad k = 1..K

    For K = 3 these are 1/beta, 1, beta.

    Source: Shang et al. 2023 (arXiv:2312.16627), Eq. 2.17.

    Args:
        num_layers: K.
        layer_decay: beta, at least 1.

    Returns:
        Shape (K,), float32.
    """
    return torch.tensor([layer_decay ** -(num_layers - 1 - k) for k in range(1, num_layers + 1)])


def balance(host: Tensor, term: Tensor, share: float) -> Tensor:
    r"""The factor that makes the term's pixel gradient ``share`` times as long as the host's.

    .. math:: \lambda \, \|g_{host}\| \,/\, \|g_{term}\|

    Zero when the term has no gradient, lambda itself when the host has none: without a host there is nothing to take a
    share of. The paper's literal weight has no such meaning: at MTT's step sizes it drowns the host (its scale grows
    with C), which is why this form is the default.

    Args:
        host: Gradient of the host's loss on the pixels, any shape.
        term: Gradient of the information term on the pixels, same shape.
        share: lambda, at least 0.

    Returns:
        Factor, shape ().
    """
    length, of_host = term.norm(), host.norm()
    factor = torch.where(length > 0, share * of_host / length.clamp(min=torch.finfo(length.dtype).tiny), 0)
    return torch.where(of_host > 0, factor, share)
