"""The add-on: heads on the sphere, critics as their formulas, networks as chosen."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mim4dd_pl import functional as F
from mim4dd_pl.heads import IdentityHead, LinearHead, MLPHead
from mim4dd_pl.information import Critic, InfoNCECritic, InformationTerm, SigmoidCritic
from mim4dd_pl.randomness import Stream
from tests.conftest import randn

SHAPES = [(4, 8, 8), (8, 2, 2)]
SYNTHETIC, REAL = torch.arange(3), torch.arange(9) % 3


@pytest.fixture
def maps(stream: Stream) -> tuple[list[Tensor], list[Tensor]]:
    """Feature maps of two layers: 3 synthetic and 9 real images."""
    return tuple(
        [randn(stream.at(side, k), count, *shape, dtype=torch.float32) for k, shape in enumerate(SHAPES)]
        for side, count in (("synthetic", 3), ("real", 9))
    )  # type: ignore[return-value]


@pytest.mark.parametrize("head", [IdentityHead, LinearHead, MLPHead])
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_end_on_the_unit_sphere(head: Callable[..., nn.Module], shape: tuple[int, int, int]) -> None:
    embedded = head(shape)(torch.randn(5, *shape))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(5))


def test_grid_of_one_is_global_average_pooling() -> None:
    features = torch.randn(5, 4, 8, 8)
    expected = torch.nn.functional.normalize(features.mean((2, 3)))
    torch.testing.assert_close(IdentityHead((4, 8, 8), grid=1)(features), expected)


def test_term_is_the_weighted_sum_over_layers_with_one_head_each_for_both_sides(
    maps: tuple[list[Tensor], list[Tensor]],
) -> None:
    term = InformationTerm(SHAPES, 3, SigmoidCritic(0.2, reduction="paper"), layer_decay=3.0)
    information = term(*maps, SYNTHETIC, REAL)
    expected = torch.tensor(0.0)
    for head, a_syn, a_real, weight in zip(term.heads, *maps, (1.0, 3.0), strict=True):
        logits = head(a_syn) @ head(a_real).T / 0.2
        expected = expected + weight * F.nce_loss(logits, F.same_class(SYNTHETIC, REAL), 3, "paper")
    torch.testing.assert_close(information.loss, expected)
    assert information.bounds.shape == (2,)


@pytest.mark.parametrize("critic", [SigmoidCritic(), InfoNCECritic()])
def test_bound_reaches_its_ceiling_for_perfect_features(critic: Critic) -> None:
    positive = F.same_class(SYNTHETIC, REAL)
    separated = torch.where(positive, 1e3, -1e3)
    assert float(critic.bound(separated, positive, 3)) == pytest.approx(critic.ceiling(3), abs=1e-5)
    assert float(critic.bound(0 * separated, positive, 3)) < critic.ceiling(3)


def test_learnable_sigmoid_starts_as_the_papers(stream: Stream) -> None:
    similarity, positive = randn(stream, 3, 9).tanh(), F.same_class(SYNTHETIC, REAL)
    plain, learnable = SigmoidCritic(0.3), SigmoidCritic(0.3, learnable=True)
    assert torch.equal(plain.loss(similarity, positive, 3), learnable.loss(similarity, positive, 3))
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    gradients = torch.autograd.grad(learnable.loss(similarity, positive, 3), list(learnable.parameters()))
    assert all(float(gradient.abs()) > 0 for gradient in gradients)


def test_networks_and_through_student_choose_who_shows_the_features() -> None:
    student, expert = torch.zeros(2, requires_grad=True), torch.ones(2)

    def chosen(networks: str, through_student: bool) -> tuple[Tensor, Tensor]:
        term = InformationTerm(SHAPES, 3, networks=networks, through_student=through_student)  # type: ignore[arg-type]
        synthetic, real = term.features_of(student, expert)
        return synthetic, real

    assert chosen("expert", False) == (expert, expert)
    assert [bool(side.requires_grad) for side in chosen("own", True)] == [True, False]
    assert [bool(side.requires_grad) for side in chosen("student", True)] == [True, True]
    for side, expected in zip(chosen("own", False), (student, expert), strict=True):
        assert not side.requires_grad
        assert torch.equal(side, expected)


def test_descending_the_term_raises_the_bound(maps: tuple[list[Tensor], list[Tensor]]) -> None:
    torch.manual_seed(0)
    term = InformationTerm(SHAPES, 3)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.01)
    before = term(*maps, SYNTHETIC, REAL).bounds
    for _ in range(50):
        optimizer.zero_grad()
        term(*maps, SYNTHETIC, REAL).loss.backward()
        optimizer.step()
    assert (term(*maps, SYNTHETIC, REAL).bounds > before).all()
    assert float(before.max()) < math.log(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SigmoidCritic(temperature=0), "critic.temperature must be positive and finite, got 0"),
        (lambda: InfoNCECritic(temperature=-1), "critic.temperature must be positive and finite, got -1"),
        (lambda: InformationTerm(SHAPES, 3, layer_decay=0.5), "layer_decay must be at least 1 and finite, got 0.5"),
        (lambda: InformationTerm(SHAPES, 3, weight=-0.1), "weight must be at least 0 and finite, got -0.1"),
        (lambda: InformationTerm(SHAPES, 1), "needs at least 2, got 1"),
        (lambda: InformationTerm(SHAPES, 3, through_student=True), "through_student needs the student's features"),
        (lambda: LinearHead((4, 2, 2), dim=0), "embedding.dim must be at least 1, got 0"),
        (lambda: IdentityHead((4, 2, 2), grid=0), "embedding.grid must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
