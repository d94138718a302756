"""The losses of the hosts as pure functions.

Symbols: theta parameters as one vector (P,). Nothing here holds state or draws random numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def parameter_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    r"""Squared distance of the student from its target, in units of the expert's own progress.

    .. math:: \|\hat\theta_{t+N} - \theta^*_{t+M}\|^2 \,/\, \|\theta^*_t - \theta^*_{t+M}\|^2

    Zero when the student lands on the expert, one when it has not moved.

    Source: Cazenavette et al. 2022 (arXiv:2203.11932), Eq. 2.

    Args:
        student: Parameters after the inner loop, shape (P,).
        target: Expert parameters at epoch t + M, shape (P,).
        start: Expert parameters at epoch t, shape (P,); must differ from ``target``.

    Returns:
        The ratio, shape ().

    Raises:
        ValueError: If ``start`` equals ``target``: there is no progress to measure by.
    """
    progress = (start - target).square().sum()
    if progress == 0:
        raise ValueError("The expert did not move between start and target: there is no progress to measure by.")
    return (student - target).square().sum() / progress


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    r"""How far two gradients of a network differ in direction, output by output of each layer.

    .. math:: \sum_{l} \sum_{o} \Big( 1 - \frac{\langle A_{lo}, B_{lo} \rangle}{\|A_{lo}\| \|B_{lo}\|} \Big)

    Zero where all of them point the same way, two for each output that points the other way, one for each that has no
    gradient.

    Source: Zhao et al. 2021 (arXiv:2006.05929), Eq. 9 and 10. As in its code, parameters of one dimension (biases and
    the scales of norms) are not compared.

    Args:
        synthetic: A_l, the gradient of each parameter, shape (out, ...).
        real: B_l, of the same shapes.

    Returns:
        The distance, shape ().
    """
    rows = [(a.flatten(1), b.flatten(1)) for a, b in zip(synthetic, real, strict=True) if a.ndim > 1]
    tiny = 1e-6  # of the published code; it also keeps the derivative finite where a gradient is zero
    cosines = [(a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + tiny) for a, b in rows]
    return torch.stack([(1 - cosine).sum() for cosine in cosines]).sum()


def mean_discrepancy(synthetic: Tensor, real: Tensor) -> Tensor:
    r"""Squared distance of two means.

    .. math:: \Big\| \frac1n \sum_i a_i - \frac1m \sum_j b_j \Big\|^2

    Source: Zhao & Bilen 2023 (arXiv:2110.04181), Eq. 4, the empirical maximum mean discrepancy of a linear kernel.

    Args:
        synthetic: a, features of synthetic images, shape (n, d).
        real: b, features of real images, shape (m, d).

    Returns:
        The squared distance, shape ().
    """
    return (synthetic.mean(0) - real.mean(0)).square().sum()
