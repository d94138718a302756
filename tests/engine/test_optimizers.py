"""Each rule against torch's own optimiser, and its transpose against autograd."""

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.optimizers import SGD, Adam, InnerOptimizer, Momentum
from tests.conftest import randn


def torchs(optimizer: InnerOptimizer, parameter: Tensor, lr: float) -> torch.optim.Optimizer:
    if isinstance(optimizer, Adam):
        return torch.optim.Adam([parameter], lr, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps)
    return torch.optim.SGD([parameter], lr, momentum=getattr(optimizer, "momentum", 0.0))


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(0.8), Adam(), Adam(0.5, 0.9, 1e-3)])
def test_a_rule_equals_torchs_optimiser(optimizer: InnerOptimizer, stream: Stream) -> None:
    theta = randn(stream.at("theta"), 1, 7)
    parameter = theta.clone().requires_grad_()
    reference, state = torchs(optimizer, parameter, 0.1), optimizer.initial(theta)
    for step in range(4):
        gradient = randn(stream.at("gradient", step), 1, 7)
        direction, state = optimizer.direction(state, gradient, step)
        theta = theta - 0.1 * direction
        parameter.grad = gradient
        reference.step()
        torch.testing.assert_close(theta, parameter.detach())


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(0.8), Adam(), Adam(0.5, 0.9, 1e-3)])
@pytest.mark.parametrize("step", [0, 3])
def test_pulling_back_is_the_vector_jacobian_product_of_the_rule(
    optimizer: InnerOptimizer, step: int, stream: Stream
) -> None:
    gradient = randn(stream.at("gradient"), 2, 7).requires_grad_()
    state = tuple(part + randn(stream.at("state"), 2, 7).square() for part in optimizer.initial(gradient.detach()))
    state = tuple(part.requires_grad_() for part in state)
    direction, after = optimizer.direction(state, gradient, step)
    to_direction = randn(stream.at("to direction"), 2, 7)
    to_state = tuple(randn(stream.at("to state", number), 2, 7) for number in range(len(state)))
    expected = torch.autograd.grad((direction, *after), (gradient, *state), (to_direction, *to_state))
    kept = tuple(part.detach() for part in optimizer.kept(after, gradient))
    to_gradient, before = optimizer.pull_back(kept, to_direction, to_state, step)
    for ours, oracle in zip((to_gradient, *before), expected, strict=True):
        torch.testing.assert_close(ours, oracle)
    s = (gradient * to_gradient).sum(-1)
    torch.testing.assert_close(
        optimizer.along(kept, to_direction, s, step).detach(), (direction * to_direction).sum(-1).detach()
    )


def test_adam_passes_nothing_but_numbers_where_gradients_are_zero() -> None:
    """A dead unit: no NaN from the root of zero, forward or back, in both ways to differentiate."""
    optimizer, zero = Adam(), torch.zeros(1, 3, requires_grad=True)
    direction, state = optimizer.direction(optimizer.initial(zero.detach()), zero, 0)
    assert torch.equal(direction, torch.zeros(1, 3))
    (by_autograd,) = torch.autograd.grad(direction.sum(), zero)
    kept = tuple(part.detach() for part in optimizer.kept(state, zero))
    ours, _ = optimizer.pull_back(kept, torch.ones(1, 3), optimizer.initial(zero.detach()), 0)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, by_autograd)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Momentum, {"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        (Adam, {"beta1": 1.0}, r"beta1 and beta2 must lie in \[0, 1\) .*got 1.0, 0.999"),
        (Adam, {"eps": 0.0}, "eps be positive, .*and 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    kind: type[InnerOptimizer], settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_a_rule_shows_its_settings() -> None:
    assert [str(rule) for rule in (SGD(), Momentum(0.5), Adam(eps=1e-3))] == [
        "SGD()",
        "Momentum(momentum=0.5)",
        "Adam(beta1=0.9, beta2=0.999, eps=0.001)",
    ]
