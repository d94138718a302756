"""Critics are their formulas, bounds reach their ceilings, and the control has none."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information import losses as F
from mim4dd_pl.information.critics import ClassMeanCritic, Critic, InfoNCECritic, PrototypeCritic, SigmoidCritic
from tests.conftest import randn

LABELS = torch.arange(3), torch.arange(9) % 3
POSITIVE = F.same_class(*LABELS)
WITH_A_BOUND = [SigmoidCritic, InfoNCECritic, PrototypeCritic]
CRITICS = [*WITH_A_BOUND, partial(SigmoidCritic, reduction="paper"), ClassMeanCritic]


@pytest.fixture
def points(stream: Stream) -> tuple[Tensor, Tensor]:
    """3 synthetic and 9 real images of 3 classes, on the unit sphere in 4 dimensions."""
    return normalize(randn(stream.at("synthetic"), 3, 4)), normalize(randn(stream.at("real"), 9, 4))


@pytest.mark.parametrize("reduction", ["paper", "mean"])
def test_sigmoid_critic_is_equations_2_14_to_2_16_on_cosines(points: tuple[Tensor, Tensor], reduction: str) -> None:
    verdict = SigmoidCritic(3, 0.2, reduction)(*points, *LABELS)  # type: ignore[arg-type]
    logits = points[0] @ points[1].T / 0.2
    torch.testing.assert_close(verdict.loss, F.nce_loss(logits, POSITIVE, 3, reduction))  # type: ignore[arg-type]
    torch.testing.assert_close(verdict.bound, F.nce_bound(logits, POSITIVE, 3))


def test_infonce_critic_is_its_formula_on_cosines(points: tuple[Tensor, Tensor]) -> None:
    verdict = InfoNCECritic(3, 0.2)(*points, *LABELS)
    logits = points[0] @ points[1].T / 0.2
    torch.testing.assert_close(verdict.loss, F.infonce_loss(logits, POSITIVE))
    torch.testing.assert_close(verdict.bound, F.infonce_bound(logits, POSITIVE))


def test_prototype_critic_equals_the_loop_over_images_classes_and_dimensions(points: tuple[Tensor, Tensor]) -> None:
    """Class 2 has no real image: its synthetic one is left out."""
    (synthetic, real), real_labels = points, torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])
    losses = []
    for i in (0, 1):
        exps = []
        for c in (0, 1):
            sums = [float(real[real_labels == c, d].sum()) for d in range(4)]
            length = math.sqrt(sum(value**2 for value in sums))
            exps.append(math.exp(sum(float(synthetic[i, d]) * sums[d] / length for d in range(4)) / 0.2))
        losses.append(-math.log(exps[i] / sum(exps)))
    verdict = PrototypeCritic(3, 0.2)(*points, LABELS[0], real_labels)
    assert float(verdict.loss) == pytest.approx(sum(losses) / 2, rel=1e-7)  # tau is a float32
    assert float(verdict.bound) == pytest.approx(math.log(2) - sum(losses) / 2, rel=1e-6)


def test_prototypes_at_constant_embeddings_are_chance() -> None:
    """All points are one: ln C, and zero nats."""
    verdict = PrototypeCritic(3)(torch.eye(4)[:1].expand(3, 4), torch.eye(4)[:1].expand(9, 4), *LABELS)
    assert float(verdict.loss) == pytest.approx(math.log(3))
    assert float(verdict.bound) == pytest.approx(0, abs=1e-6)
    assert PrototypeCritic(3).ceiling == math.log(3)


def test_the_control_attracts_without_contrast_and_bounds_nothing(points: tuple[Tensor, Tensor]) -> None:
    critic = ClassMeanCritic(3)
    verdict = critic(*points, *LABELS)
    torch.testing.assert_close(verdict.loss, F.class_mean_distance(*points, *LABELS, 3))
    assert critic.ceiling is None
    assert torch.isnan(verdict.bound)


@pytest.mark.parametrize("critic", CRITICS)
def test_critic_gradient(critic: Callable[[int], Critic], points: tuple[Tensor, Tensor]) -> None:
    built = critic(3).double().requires_grad_()
    own = list(built.parameters())

    def loss(synthetic: Tensor, real: Tensor, *_: Tensor) -> Tensor:
        verdict: Tensor = built(synthetic, real, *LABELS).loss
        return verdict

    assert gradcheck(loss, (*(side.requires_grad_() for side in points), *own))


@pytest.mark.parametrize("critic", WITH_A_BOUND)
def test_bound_reaches_its_ceiling_for_perfect_features(critic: Callable[..., Critic]) -> None:
    """Three clusters on the sphere, their angles as wide as three can have them."""
    triangle = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)])
    built = critic(3, temperature=0.01)
    assert float(built(triangle, triangle.repeat(3, 1), *LABELS).bound) == pytest.approx(built.ceiling, abs=1e-5)
    assert float(built(triangle, triangle.repeat(3, 1).flip(0), *LABELS).bound) < 0


@pytest.mark.parametrize("critic", WITH_A_BOUND)
def test_what_is_learnable_starts_as_what_is_fixed(
    critic: Callable[..., Critic], points: tuple[Tensor, Tensor]
) -> None:
    fixed, learnable = critic(3, temperature=0.3), critic(3, temperature=0.3, learnable=True)
    loss = learnable(*points, *LABELS).loss
    assert torch.equal(fixed(*points, *LABELS).loss, loss)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    assert all(float(gradient.abs()) > 0 for gradient in torch.autograd.grad(loss, list(learnable.parameters())))


@pytest.mark.parametrize("critic", CRITICS)
def test_no_verdict_is_nan_without_positives(critic: Callable[[int], Critic], points: tuple[Tensor, Tensor]) -> None:
    synthetic = points[0].requires_grad_()
    verdict = critic(6)(synthetic, points[1], LABELS[0] + 3, LABELS[1])
    (gradient,) = torch.autograd.grad(verdict.loss, synthetic)
    assert torch.isfinite(verdict.loss)
    assert torch.isfinite(gradient).all()
    assert torch.isnan(verdict.bound)


@pytest.mark.parametrize("critic", WITH_A_BOUND)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_out_of_range_is_refused(critic: Callable[..., Critic], temperature: float) -> None:
    message = f"^temperature must be positive and finite, got {temperature}"
    with pytest.raises(ValueError, match=message):
        critic(3, temperature=temperature)


def test_the_sigmoid_critic_refuses_two_classes_and_says_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"at least 3 classes, .*, got 2: take InfoNCE"):
        SigmoidCritic(2)
    assert InfoNCECritic(2).ceiling == math.log(2)
