"""The losses of the hosts against the papers' text, their gradients, and their limits."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.objectives import losses as F
from tests.conftest import randn


def test_parameter_distance_is_the_ratio_of_squared_norms(stream: Stream) -> None:
    student, target, start = randn(stream, 3, 7)
    expected = float((student - target).norm() ** 2 / (start - target).norm() ** 2)
    assert float(F.parameter_distance(student, target, start)) == pytest.approx(expected, rel=1e-12)


def test_parameter_distance_is_one_at_the_start_and_zero_at_the_target(stream: Stream) -> None:
    target, start = randn(stream, 2, 7)
    assert F.parameter_distance(start, target, start) == 1
    assert F.parameter_distance(target, target, start) == 0


def test_parameter_distance_refuses_an_expert_that_did_not_move() -> None:
    with pytest.raises(ValueError, match="no progress"):
        F.parameter_distance(torch.zeros(3), torch.ones(3), torch.ones(3))


def test_parameter_distance_gradient(stream: Stream) -> None:
    student, target, start = randn(stream, 3, 7)
    assert gradcheck(lambda theta: F.parameter_distance(theta, target, start), student.requires_grad_())


@pytest.fixture
def gradients(stream: Stream) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of a convolution, its bias and a linear layer, twice."""
    shapes = [(3, 2, 2, 2), (3,), (4, 5)]
    both = [[randn(stream.at(side, number), *shape) for number, shape in enumerate(shapes)] for side in range(2)]
    return both[0], both[1]


def test_gradient_distance_is_one_minus_cosine_added_over_outputs(
    gradients: tuple[list[Tensor], list[Tensor]],
) -> None:
    expected = 0.0
    for a, b in zip(*gradients, strict=True):
        for row, other in zip(a, b, strict=True):
            if a.ndim > 1:
                expected += 1 - float((row * other).sum() / (row.norm() * other.norm() + 1e-6))
    assert float(F.gradient_distance(*gradients)) == pytest.approx(expected, rel=1e-12)


def test_gradient_distance_runs_from_zero_over_one_to_two_for_each_output(
    gradients: tuple[list[Tensor], list[Tensor]],
) -> None:
    """Seven outputs: the same direction at any length, no gradient, the other direction."""
    real = gradients[0]
    for factor, each in ((3.0, 0), (0.0, 1), (-2.0, 2)):
        distance = F.gradient_distance([factor * part for part in real], real)
        assert float(distance) == pytest.approx(7 * each, abs=1e-5)


def test_gradient_distance_gradient(gradients: tuple[list[Tensor], list[Tensor]]) -> None:
    """Also where a row is zero, which has no direction."""
    ours, real = gradients
    assert gradcheck(lambda *parts: F.gradient_distance(parts, real), [part.requires_grad_() for part in ours])
    zero = torch.zeros(2, 3, requires_grad=True)
    (at_zero,) = torch.autograd.grad(F.gradient_distance([zero], [torch.ones(2, 3)]), zero)
    assert torch.isfinite(at_zero).all()


def test_mean_discrepancy_is_the_squared_distance_of_the_means(stream: Stream) -> None:
    synthetic, real = randn(stream.at("a"), 3, 5), randn(stream.at("b"), 7, 5)
    expected = sum((sum(synthetic[:, d]) / 3 - sum(real[:, d]) / 7) ** 2 for d in range(5))
    torch.testing.assert_close(F.mean_discrepancy(synthetic, real), expected)
    assert F.mean_discrepancy(real, real.flip(0)) == pytest.approx(0, abs=1e-20)
    assert gradcheck(lambda a: F.mean_discrepancy(a, real), synthetic.requires_grad_())
