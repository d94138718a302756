"""The add-on: heads and critic over the chosen layers, networks as chosen."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information import losses as F
from mim4dd_pl.information.critics import ClassMeanCritic, Critic, InfoNCECritic, PrototypeCritic, SigmoidCritic
from mim4dd_pl.information.heads import Head, IdentityHead, LinearHead, MLPHead, ResidualMLPHead
from mim4dd_pl.information.term import InformationTerm
from tests.conftest import randn

SHAPES = [(4, 8, 8), (4, 4, 4), (8, 2, 2)]
LABELS = torch.arange(3), torch.arange(9) % 3
Maps = tuple[list[Tensor], list[Tensor]]


@pytest.fixture
def maps(stream: Stream) -> Maps:
    """Feature maps of three layers: 3 synthetic and 9 real images."""
    torch.manual_seed(0)  # the heads start from torch's global generator, as in a run
    return tuple(
        [randn(stream.at(side, k), count, *shape, dtype=torch.float32) for k, shape in enumerate(SHAPES)]
        for side, count in (("synthetic", 3), ("real", 9))
    )  # type: ignore[return-value]


def expected_loss(term: InformationTerm, maps: Maps, chosen: list[int], weights: list[float]) -> Tensor:
    """The paper's critic at temperature 0.2 over the chosen layers, one head each for both sides."""
    total = torch.tensor(0.0)
    for head, k, weight in zip(term.heads, chosen, weights, strict=True):
        logits = head(maps[0][k]) @ head(maps[1][k]).T / 0.2
        total = total + weight * F.nce_loss(logits, F.same_class(*LABELS), 3, "paper")
    return total


PAPER = partial(SigmoidCritic, temperature=0.2, reduction="paper")


def test_term_is_the_weighted_sum_over_layers_with_one_head_each_for_both_sides(maps: Maps) -> None:
    term = InformationTerm(SHAPES, 3, PAPER, layer_decay=3.0)
    information = term(*maps, *LABELS)
    torch.testing.assert_close(information.loss, expected_loss(term, maps, [0, 1, 2], [1 / 3, 1.0, 3.0]))
    assert information.bounds.shape == (3,)


def test_weights_and_bounds_count_the_chosen_layers_alone_shallow_to_deep(maps: Maps) -> None:
    term = InformationTerm(SHAPES, 3, PAPER, layers=["layer3", "layer1"], layer_decay=3.0)
    information = term(*maps, *LABELS)
    torch.testing.assert_close(information.loss, expected_loss(term, maps, [0, 2], [1.0, 3.0]))
    assert term.layers == ["layer1", "layer3"]
    assert information.bounds.shape == (2,)


@pytest.fixture
def logits(stream: Stream) -> tuple[Tensor, Tensor]:
    """Of 3 synthetic and 9 real images of 3 classes."""
    return tuple(3 * randn(stream.at("logits", side), count, 3) + 5 for side, count in enumerate((3, 9)))  # type: ignore[return-value]


def centred(row: list[float]) -> list[float]:
    """On the unit sphere, their mean taken off."""
    off = [value - sum(row) / len(row) for value in row]
    return [value / math.sqrt(sum(each**2 for each in off)) for value in off]


def test_the_term_on_logits_equals_its_triple_loop(maps: Maps, logits: tuple[Tensor, Tensor]) -> None:
    """Synthetic images, real images, classes; without a head, InfoNCE at temperature 0.1."""
    ours, theirs = ([centred(row) for row in side.tolist()] for side in logits)
    total = 0.0
    for i in range(3):
        similarity = []
        for j in range(9):
            similarity.append(sum(ours[i][c] * theirs[j][c] for c in range(3)) / 0.1)
        log_sum = math.log(sum(math.exp(s) for s in similarity))
        total += sum(log_sum - similarity[j] for j in range(9) if j % 3 == i) / 3 / 3
    term = InformationTerm([], 3, embedding=IdentityHead, layers=["logits"], layer_decay=1.0).double()
    information = term([logits[0]], [logits[1]], *LABELS)
    assert float(information.loss) == pytest.approx(total, rel=1e-6)  # tau is a float32
    assert float(information.bounds) == pytest.approx(math.log(9) - total, rel=1e-6)
    assert (term.layers, term.reads_logits) == (["logits"], True)


def test_logits_are_the_deepest_layer_after_the_maps(maps: Maps, logits: tuple[Tensor, Tensor]) -> None:
    sides = [[*side, part.float()] for side, part in zip(maps, logits, strict=True)]
    term = InformationTerm(SHAPES, 3, PAPER, layers=["logits", "layer2"], layer_decay=3.0)
    both = [[side[1], (side[3] - side[3].mean(1, keepdim=True))[..., None, None]] for side in sides]
    expected = expected_loss(term, tuple(both), [0, 1], [1.0, 3.0])  # type: ignore[arg-type]
    torch.testing.assert_close(term(*sides, *LABELS).loss, expected)
    assert term.layers == ["layer2", "logits"]


def test_what_all_logits_of_an_image_share_does_not_count(logits: tuple[Tensor, Tensor]) -> None:
    term = InformationTerm([], 3, layers=["logits"]).double()
    moved = term([logits[0] + randn(Stream(7), 3, 1)], [logits[1] - 2], *LABELS).loss
    torch.testing.assert_close(moved, term([logits[0]], [logits[1]], *LABELS).loss)


HEADS = [IdentityHead, LinearHead, partial(MLPHead, hidden=5), partial(ResidualMLPHead, hidden=5)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("critic", [SigmoidCritic, InfoNCECritic, PrototypeCritic, ClassMeanCritic])
def test_every_head_and_critic_works_on_logits(
    critic: Callable[[int], Critic], head: Callable[..., Head], logits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    term = InformationTerm([], 3, critic, head, ["logits"]).double()

    def loss(synthetic: Tensor, real: Tensor) -> Tensor:
        value: Tensor = term([synthetic], [real], *LABELS).loss
        return value

    assert gradcheck(loss, [side.requires_grad_() for side in logits])


def test_logits_take_part_only_where_they_are_named_and_change_no_other_head(maps: Maps) -> None:
    terms = []
    for layers in (None, ["layer1", "layer2", "layer3"], ["layer1", "layer2", "layer3", "logits"]):
        torch.manual_seed(0)
        terms.append(InformationTerm(SHAPES, 3, layers=layers))
    assert [term.reads_logits for term in terms] == [False, False, True]
    assert terms[0].layers == ["layer1", "layer2", "layer3"]
    assert terms[0](*maps, *LABELS).loss == terms[1](*maps, *LABELS).loss
    more = terms[2].heads.state_dict()
    assert all(torch.equal(part, more[name]) for name, part in terms[0].heads.state_dict().items())


def test_layers_that_are_left_out_get_no_gradient(maps: Maps) -> None:
    synthetic = [layer.requires_grad_() for layer in maps[0]]
    loss = InformationTerm(SHAPES, 3, layers=["layer2"])(synthetic, maps[1], *LABELS).loss
    gradients = torch.autograd.grad(loss, synthetic, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [False, True, False]


@pytest.mark.parametrize("name", ["shared", "student", "own"])
def test_networks_choose_who_shows_the_features(name: Any) -> None:
    student, expert = torch.zeros(2, requires_grad=True), torch.ones(2)
    term = InformationTerm(SHAPES, 3, networks=name)
    expected = {"shared": [expert, expert], "student": [student, student], "own": [student, expert]}[name]
    seen = term.features_of(student, expert)
    assert all(torch.equal(side, one) and not side.requires_grad for side, one in zip(seen, expected, strict=True))
    assert term.needs_expert == (name == "own")


def test_without_an_expert_the_shared_network_is_the_student() -> None:
    student = torch.zeros(2)
    for networks in ("shared", "student"):
        seen = InformationTerm(SHAPES, 3, networks=networks).features_of(student, None)
        assert all(torch.equal(side, student) for side in seen)


def test_through_student_keeps_the_graph_of_the_student_alone() -> None:
    student, expert = torch.zeros(2, requires_grad=True), torch.ones(2)
    for networks, kept in (("own", [True, False]), ("student", [True, True])):
        term = InformationTerm(SHAPES, 3, networks=networks, through_student=True)  # type: ignore[arg-type]
        assert [side.requires_grad for side in term.features_of(student, expert)] == kept


def test_own_networks_without_an_expert_are_refused() -> None:
    with pytest.raises(ValueError, match="networks own needs an objective that reads experts: set it to shared or"):
        InformationTerm(SHAPES, 3, networks="own").features_of(torch.zeros(2), None)


def test_descending_the_term_raises_the_bound(maps: Maps) -> None:
    term = InformationTerm(SHAPES, 3)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.01)
    before = term(*maps, *LABELS).bounds
    for _ in range(50):
        optimizer.zero_grad()
        term(*maps, *LABELS).loss.backward()
        optimizer.step()
    assert (term(*maps, *LABELS).bounds > before).all()
    assert float(before.max()) < math.log(3)


def test_a_learning_rate_of_zero_freezes_heads_and_critic_and_not_the_images(maps: Maps) -> None:
    term = InformationTerm(SHAPES, 3, partial(SigmoidCritic, learnable=True), lr=0.0)
    assert not any(parameter.requires_grad for parameter in term.parameters())
    synthetic = [layer.requires_grad_() for layer in maps[0]]
    gradients = torch.autograd.grad(term(synthetic, maps[1], *LABELS).loss, synthetic)
    assert all(gradient.any() for gradient in gradients)


def test_bounds_are_nan_beside_the_control(maps: Maps) -> None:
    information = InformationTerm(SHAPES, 3, ClassMeanCritic)(*maps, *LABELS)
    assert torch.isfinite(information.loss)
    assert torch.isnan(information.bounds).all()


def test_a_literal_weight_is_in_the_loss(maps: Maps) -> None:
    term = InformationTerm(SHAPES, 3, weight=0.5)
    plain = term(*maps, *LABELS)
    term.balance = "literal"
    torch.testing.assert_close(term(*maps, *LABELS), plain._replace(loss=0.5 * plain.loss))


def test_factor_is_a_share_of_the_host_or_one() -> None:
    host, term = torch.full((4,), 2.0), torch.ones(4)
    assert float(InformationTerm(SHAPES, 3, weight=0.5).factor(host, term)) == pytest.approx(1.0)
    assert float(InformationTerm(SHAPES, 3, weight=0.5).factor(0 * host, term)) == 0.5
    assert float(InformationTerm(SHAPES, 3, weight=0.5, balance="literal").factor(host, term)) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layer_decay": 0.5}, "layer_decay must be at least 1 and finite, got 0.5"),
    ({"layer_decay": math.nan}, "layer_decay must be at least 1 and finite, got nan"),
    ({"weight": -0.1}, "weight must be at least 0 and finite, got -0.1"),
    ({"weight": math.nan}, "weight must be at least 0 and finite, got nan"),
    ({"real_batch_size": 0}, "real_batch_size must be at least 1, got 0"),
    ({"lr": -1.0}, "lr must be at least 0 and finite, got -1.0"),
    ({"lr": math.nan}, "lr must be at least 0 and finite, got nan"),
    ({"through_student": True}, "through_student needs the student's features, got networks shared"),
    ({"layers": ["conv1"]}, "layers must name one or more of layer1, layer2, layer3, logits, each once, got conv1"),
    ({"layers": ["layer1", "layer1"]}, "each once, got layer1, layer1"),
    ({"layers": []}, "each once, got none"),
    ({"balance": "equal"}, "balance must be gradient or literal, got equal"),
    ({"networks": "both"}, "networks must be shared or student or own, got both"),
    ({"real_sampling": "random"}, "real_sampling must be uniform or balanced, got random"),
    ({"warm_up_steps": -1}, "warm_up_steps must be at least 0 and finite, got -1"),
    (
        {"warm_up_steps": 5, "lr": 0.0},
        "warm_up_steps must be 0 where neither heads nor critic learn, got 5 with an lr of 0.0",
    ),
    (
        {"warm_up_steps": 5, "embedding": IdentityHead},
        "where neither heads nor critic learn, got 5 with an lr of 0.001",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InformationTerm(SHAPES, 3, **settings)


WRONG_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"synthetic": [torch.zeros(3, 3)]}, "synthetic must hold 2 tensors, feature maps and logits, got 1"),
    ({"real": [torch.zeros(9, 3)] * 3}, "real must hold 2 tensors, feature maps and logits, got 3"),
    ({"real": [torch.zeros(9, 2, 1, 1), torch.zeros(9, 4)]}, r"end with logits of shape \(B, 3\), got \(9, 4\)"),
    ({"synthetic_labels": torch.zeros(3, 3)}, r"synthetic_labels must be of shape \(3,\), got \(3, 3\)"),
    ({"real_labels": torch.arange(8) % 3}, r"real_labels must be of shape \(9,\), got \(8,\)"),
    ({"real_labels": torch.arange(9)}, "real_labels must lie in 0..2, got 0 to 8"),
    ({"synthetic_labels": torch.tensor([-1, 0, 1])}, "synthetic_labels must lie in 0..2, got -1 to 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_INPUT, ids=[row[1] for row in WRONG_INPUT])
def test_what_does_not_fit_the_network_or_its_labels_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "synthetic": [torch.zeros(3, 2, 1, 1), torch.zeros(3, 3)],
        "real": [torch.zeros(9, 2, 1, 1), torch.zeros(9, 3)],
        "synthetic_labels": LABELS[0],
        "real_labels": LABELS[1],
    }
    term = InformationTerm([(2, 1, 1)], 3, layers=["layer1", "logits"])
    term(**given)
    with pytest.raises(ValueError, match=message):
        term(**given | changes)


def test_logits_that_the_term_does_not_read_are_refused(maps: Maps) -> None:
    with pytest.raises(ValueError, match="synthetic must hold 3 tensors, feature maps, got 4"):
        InformationTerm(SHAPES, 3)([*maps[0], torch.zeros(3, 3)], maps[1], *LABELS)


def test_one_class_is_refused() -> None:
    build: Callable[[], object] = partial(InformationTerm, SHAPES, 1)
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        build()
