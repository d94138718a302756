"""How alike two representations of the same images are: centred kernel alignment (CKA) with the linear kernel.

Symbols: X (n, D_1) and Y (n, D_2) are features of the same n images in two networks or layers, K = X X^T and L = Y Y^T
their Gram matrices. HSIC is an inner product of K and L after a centring, and CKA the cosine that belongs to it. Only
features of the same images can be compared: there is no CKA of features of real images and of synthetic ones.

Sources: Kornblith et al. 2019 (arXiv:1905.00414); the unbiased form: Song et al. 2012 (JMLR 13), Eq. 5, as
Nguyen et al. 2021 (arXiv:2010.15327) average it over minibatches.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

FEWEST = 4
"""Images of a minibatch that the unbiased estimate needs."""


def gram(features: Tensor) -> Tensor:
    """Gram matrix of features, shape (n, ...), around their mean: (n, n), float64.

    Both centrings below take the mean away in any case; taking it away first keeps float32 products exact enough.
    """
    flat = features.flatten(1)
    flat = flat - flat.mean(0)
    return (flat @ flat.T).double()


def centred(k: Tensor) -> Tensor:
    r"""H K H / (n - 1) with H = I - 11^T/n, shape (n, n): inner products of these are the biased HSIC.

    .. math:: \mathrm{HSIC}(K, L) = \mathrm{tr}(K H L H) \,/\, (n - 1)^2
    """
    middle = k - k.mean(0, keepdim=True)
    return (middle - middle.mean(1, keepdim=True)) / (len(k) - 1)


def u_centred(k: Tensor) -> Tensor:
    r"""K centred so that inner products of such matrices are the unbiased HSIC_1, shape (n, n).

    .. math:: \mathrm{HSIC}_1(K, L) = \frac{1}{n(n-3)} \Big( \mathrm{tr}(\tilde K \tilde L)
              + \frac{1^T \tilde K 1 \; 1^T \tilde L 1}{(n-1)(n-2)} - \frac{2}{n-2} 1^T \tilde K \tilde L 1 \Big)

    with zeros on the diagonals of K~ and L~. On average over samples it is zero for independent features, which the
    biased form is not as long as n is small beside the number of features.

    Source: Székely & Rizzo 2014 (arXiv:1310.2926), who write the estimate as this inner product.

    Raises:
        ValueError: If n is less than 4.
    """
    n = len(k)
    if n < FEWEST:
        raise ValueError(f"The unbiased HSIC needs at least {FEWEST} images in a minibatch, got {n}.")
    off = k - k.diag().diag()
    rows = off.sum(0) / (n - 2)
    middle = off - rows[:, None] - rows[None, :] + off.sum() / ((n - 1) * (n - 2))
    return (middle - middle.diag().diag()) / math.sqrt(n * (n - 3))


def minibatch_cka(
    minibatches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]], centring: Callable[[Tensor], Tensor] = u_centred
) -> Tensor:
    r"""CKA of every layer of one network with every layer of another, from minibatches.

    .. math:: \frac{\sum_b \mathrm{HSIC}_1(K_b, L_b)}
                   {\sqrt{\sum_b \mathrm{HSIC}_1(K_b, K_b)} \sqrt{\sum_b \mathrm{HSIC}_1(L_b, L_b)}}

    One where the features are equal up to rotation and scale, about zero (and below it by chance) where they are
    unrelated; zero where a layer says the same of every image.

    Source: Nguyen et al. 2021 (arXiv:2010.15327), Eq. 2 and 3.

    Args:
        minibatches: For each the Gram matrices of its n images in the R layers of the one and the C layers of the other
            network, each of shape (n, n); n should be the same for all minibatches.
        centring: Which HSIC: :func:`u_centred` or :func:`centred`.

    Returns:
        Shape (R, C), float64.

    Raises:
        ValueError: If there is no minibatch.
    """
    shared, one, other = [], [], []
    for first, second in minibatches:
        ours, theirs = (torch.stack([centring(k).flatten() for k in grams]) for grams in (first, second))
        shared.append(ours @ theirs.T)
        one.append(ours.square().sum(1))
        other.append(theirs.square().sum(1))
    if not shared:
        raise ValueError("CKA needs at least one minibatch, got none.")
    lengths = torch.stack(one).sum(0).sqrt()[:, None] * torch.stack(other).sum(0).sqrt()
    return torch.stack(shared).sum(0) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear CKA of two representations of the same images.

    .. math:: \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}}
              = \frac{\|Y^T X\|_F^2}{\|X^T X\|_F \, \|Y^T Y\|_F}

    (the right side for features without mean). One where they are equal up to rotation and scale, zero where they are
    uncorrelated; with fewer images than features it is far above zero even for independent ones.

    Source: Kornblith et al. 2019 (arXiv:1905.00414), Eq. 2 and 3 and Section 3.

    Returns:
        In [0, 1], shape (), float64, of features of shapes (n, ...).
    """
    return minibatch_cka([([gram(x)], [gram(y)])], centred).squeeze()
