"""Centred kernel alignment against its formulas, and what it must not see."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mim4dd_pl.analysis.similarity import centred, gram, linear_cka, minibatch_cka, u_centred
from mim4dd_pl.basics.randomness import Stream
from tests.conftest import randn

Pairs = list[tuple[list[Tensor], list[Tensor]]]


@pytest.fixture
def x(stream: Stream) -> Tensor:
    return randn(stream.at("x"), 9, 5)


@pytest.fixture
def y(stream: Stream, x: Tensor) -> Tensor:
    """Shares a part with x; no mean of zero."""
    return x[:, :3] @ randn(stream.at("map"), 3, 4) + randn(stream.at("y"), 9, 4) + 2


def cka(minibatches: Pairs, centring: Callable[[Tensor], Tensor] = u_centred) -> Tensor:
    """Of features."""
    return minibatch_cka([([gram(a) for a in one], [gram(b) for b in other]) for one, other in minibatches], centring)


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """The matrices of Kornblith et al. 2019, Eq. 3."""
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - torch.full((n, n), 1 / n, dtype=k.dtype)
    return (k @ h @ m @ h).trace() / (n - 1) ** 2


def hsic_1(k: Tensor, m: Tensor) -> Tensor:
    """The traces and sums of Nguyen et al. 2021, Eq. 3."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, m = k - k.diag().diag(), m - m.diag().diag()
    sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return ((k @ m).trace() + sums - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def test_centred_matrices_give_both_forms_of_hsic(x: Tensor, y: Tensor) -> None:
    """Of raw Gram matrices, and of those without the mean of the features."""
    k, m = x @ x.T, y @ y.T
    for centring, formula in ((centred, hsic), (u_centred, hsic_1)):
        torch.testing.assert_close((centring(k) * centring(m)).sum(), formula(k, m))
        torch.testing.assert_close((centring(gram(x)) * centring(gram(y))).sum(), formula(k, m))


def test_hsic_1_is_the_mean_over_all_quadruples(x: Tensor, y: Tensor) -> None:
    """What it is unbiased for: E[k12 m12] + E[k12 m34] - 2 E[k12 m13] over different images."""
    k, m, terms = x[:6] @ x[:6].T, y[:6] @ y[:6].T, []
    for a in range(6):
        for b in set(range(6)) - {a}:
            for c in set(range(6)) - {a, b}:
                for d in set(range(6)) - {a, b, c}:
                    terms.append(k[a, b] * (m[a, b] + m[c, d] - 2 * m[a, c]))
    torch.testing.assert_close((u_centred(k) * u_centred(m)).sum(), torch.stack(terms).mean())


def test_linear_cka_is_the_ratio_of_norms_of_products_of_features(x: Tensor, y: Tensor) -> None:
    p, q = x - x.mean(0), y - y.mean(0)
    expected = (q.T @ p).norm() ** 2 / ((p.T @ p).norm() * (q.T @ q).norm())
    torch.testing.assert_close(linear_cka(x, y), expected)


def test_minibatch_cka_is_made_of_means_over_minibatches(x: Tensor, y: Tensor) -> None:
    pairs = [(x[:4], y[:4]), (x[4:8], y[4:8])]

    def mean(one: int, other: int) -> Tensor:
        return sum((hsic_1(b[one] @ b[one].T, b[other] @ b[other].T) for b in pairs), start=torch.tensor(0)) / 2

    expected = mean(0, 1) / (mean(0, 0) * mean(1, 1)).sqrt()
    torch.testing.assert_close(cka([([a], [b]) for a, b in pairs]).squeeze(), expected)


def test_rows_are_layers_of_the_first_network_and_columns_of_the_second(x: Tensor, y: Tensor) -> None:
    table = cka([([x, y], [y, x, x + y[:, :1]])])
    assert table.shape == (2, 3)
    torch.testing.assert_close(table[0, 1], torch.ones_like(table[0, 1]))
    torch.testing.assert_close(table[0, 0], cka([([x], [y])])[0, 0])


@pytest.mark.parametrize("centring", [centred, u_centred])
def test_cka_is_one_on_itself_however_turned_and_scaled(
    x: Tensor, y: Tensor, stream: Stream, centring: Callable[[Tensor], Tensor]
) -> None:
    turn, _ = torch.linalg.qr(randn(stream.at("turn"), 5, 5))
    table = cka([([x], [x, 3 * x @ turn + 1, y])], centring)
    turned = cka([([3 * x @ turn + 1], [y])], centring)
    torch.testing.assert_close(table[0, :2], torch.ones_like(table[0, :2]))
    torch.testing.assert_close(turned[0, 0], table[0, 2])


def test_independent_features_are_alike_to_the_biased_form_only(stream: Stream) -> None:
    """64 images a minibatch and 256 features: the biased form is near 1 - by the number of features alone."""
    batches = [randn(stream.at(number), 2, 64, 256) for number in range(10)]
    assert abs(float(cka([([a], [b]) for a, b in batches]))) < 0.01
    assert linear_cka(*batches[0]) > 0.7


def test_a_layer_that_says_the_same_of_all_images_is_like_nothing(x: Tensor) -> None:
    assert float(cka([([x], [torch.ones(9, 2)])])) == 0


def test_too_few_images_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 4 images in a minibatch, got 3"):
        cka([([x[:3]], [x[:3]])])
    with pytest.raises(ValueError, match="at least one minibatch, got none"):
        minibatch_cka([])
