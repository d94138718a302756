"""The critics' losses against the papers' text, their gradients, and their limits."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information import losses as F
from tests.conftest import randn


@pytest.fixture
def pairs(stream: Stream) -> tuple[Tensor, Tensor]:
    """Logits of 6 synthetic and 9 real images of 3 classes, and which pairs agree."""
    synthetic, real = torch.arange(3).repeat_interleave(2), torch.arange(9) % 3
    return 3 * randn(stream, 6, 9), F.same_class(synthetic, real)


def nce_by_the_paper(logits: Tensor, positive: Tensor, num_classes: int) -> float:
    """Equations 2.15 and 2.16 as a loop over all pairs, h written as exp / (exp + 1)."""
    attraction, repulsion = [], []
    for i in range(logits.shape[0]):
        for j in range(logits.shape[1]):
            h = math.exp(logits[i, j]) / (math.exp(logits[i, j]) + 1)
            if positive[i, j]:
                attraction.append(math.log(h))
            else:
                repulsion.append(math.log(1 - h))
    return -(sum(attraction) / len(attraction) + (num_classes - 1) * sum(repulsion) / len(repulsion))


def test_nce_loss_equals_the_loop_of_the_paper(pairs: tuple[Tensor, Tensor]) -> None:
    logits, positive = pairs
    assert float(F.nce_loss(logits, positive, 3, "paper")) == pytest.approx(
        nce_by_the_paper(logits, positive, 3), rel=1e-12
    )


def test_total_of_the_layers_equals_the_triple_loop_of_the_paper(stream: Stream, pairs: tuple[Tensor, Tensor]) -> None:
    """Equation 2.17: layers, synthetic images, real images; beta^(K-1-k) with k counted from 1."""
    _, positive = pairs
    layers, beta = 3 * randn(stream.at("layers"), 4, 6, 9), 1.7
    expected = sum(nce_by_the_paper(layers[k - 1], positive, 3) / beta ** (4 - 1 - k) for k in range(1, 5))
    losses = torch.stack([F.nce_loss(layer, positive, 3, "paper") for layer in layers])
    assert float(losses @ F.layer_weights(4, beta).double()) == pytest.approx(expected, rel=1e-6)


def test_mean_reduction_counts_every_pair_once(pairs: tuple[Tensor, Tensor]) -> None:
    logits, positive = pairs
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, positive.double())
    torch.testing.assert_close(F.nce_loss(logits, positive, 3, "mean"), expected)


def test_nce_loss_at_zero_similarity(pairs: tuple[Tensor, Tensor]) -> None:
    zero = torch.zeros_like(pairs[0])
    assert float(F.nce_loss(zero, pairs[1], 3, "paper")) == pytest.approx(3 * math.log(2))
    assert float(F.nce_loss(zero, pairs[1], 3, "mean")) == pytest.approx(math.log(2))


def test_nce_loss_is_invariant_under_permutation(pairs: tuple[Tensor, Tensor]) -> None:
    logits, positive = pairs
    rows, columns = torch.randperm(6), torch.randperm(9)
    permuted = F.nce_loss(logits[rows][:, columns], positive[rows][:, columns], 3, "paper")
    torch.testing.assert_close(permuted, F.nce_loss(logits, positive, 3, "paper"))


@pytest.mark.parametrize("reduction", ["paper", "mean"])
def test_nce_loss_gradient(pairs: tuple[Tensor, Tensor], reduction: str) -> None:
    logits, positive = pairs
    assert gradcheck(lambda s: F.nce_loss(s, positive, 3, reduction), logits.requires_grad_())  # type: ignore[arg-type]


def losses(logits: Tensor, positive: Tensor) -> list[Tensor]:
    return [
        F.nce_loss(logits, positive, 3, "paper"),
        F.nce_loss(logits, positive, 3, "mean"),
        F.infonce_loss(logits, positive),
    ]


@pytest.mark.parametrize("everything", [True, False], ids=["no negatives", "no positives"])
def test_losses_and_gradients_are_finite_without_one_kind_of_pair(everything: bool) -> None:
    for number in range(3):
        logits = torch.zeros(2, 4, requires_grad=True)
        loss = losses(logits, torch.full((2, 4), everything))[number]
        loss.backward()
        assert logits.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


def test_infonce_is_zero_without_positives() -> None:
    assert F.infonce_loss(torch.randn(2, 4), torch.zeros(2, 4, dtype=torch.bool)) == 0


def test_losses_are_finite_in_float32_at_temperature_one_hundredth(pairs: tuple[Tensor, Tensor]) -> None:
    similarity = torch.tanh(pairs[0]).float().requires_grad_()
    for loss in losses(similarity / 0.01, pairs[1]):
        (gradient,) = torch.autograd.grad(loss, similarity, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_nce_bound_is_equation_2_14(pairs: tuple[Tensor, Tensor]) -> None:
    logits, positive = pairs
    expected = math.log(3 - 1) + float(torch.sigmoid(logits[positive]).log().mean())
    assert float(F.nce_bound(logits, positive, 3)) == pytest.approx(expected)


def test_nce_bound_saturates_at_log_of_classes_minus_one(pairs: tuple[Tensor, Tensor]) -> None:
    perfect = torch.where(pairs[1], 1e4, -1e4)
    assert float(F.nce_bound(perfect, pairs[1], 10)) == pytest.approx(math.log(9))


def test_nce_bound_is_void_for_two_classes(stream: Stream) -> None:
    positive = F.same_class(torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    assert F.nce_bound(5 * randn(stream, 2, 3), positive, 2) <= 0


def test_bounds_are_nan_where_nothing_was_measured() -> None:
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.isnan(F.nce_bound(torch.zeros(2, 4), none, 3))
    assert torch.isnan(F.infonce_bound(torch.zeros(2, 4), none))


def test_infonce_loss_equals_the_loop_of_its_paper(pairs: tuple[Tensor, Tensor]) -> None:
    logits, positive = pairs
    positive = positive.clone()
    positive[1] = False  # an anchor without positives is left out
    per_anchor = []
    for i in range(6):
        terms = []
        for j in range(9):
            if positive[i, j]:
                terms.append(math.log(math.exp(logits[i, j]) / sum(math.exp(s) for s in logits[i])))
        if terms:
            per_anchor.append(-sum(terms) / len(terms))
    assert float(F.infonce_loss(logits, positive)) == pytest.approx(sum(per_anchor) / len(per_anchor), rel=1e-12)


def test_infonce_loss_gradient(pairs: tuple[Tensor, Tensor]) -> None:
    assert gradcheck(lambda s: F.infonce_loss(s, pairs[1]), pairs[0].requires_grad_())


def test_infonce_bound_runs_from_zero_to_log_of_classes(pairs: tuple[Tensor, Tensor]) -> None:
    assert float(F.infonce_bound(torch.zeros(6, 9), pairs[1])) == pytest.approx(0, abs=1e-6)
    assert float(F.infonce_bound(torch.where(pairs[1], 1e4, -1e4), pairs[1])) == pytest.approx(math.log(3))


CLASSES = torch.arange(3).repeat_interleave(2)
ALL = torch.tensor([True, True, True])


def test_prototype_loss_equals_the_loop_over_images_and_classes_that_are_there(stream: Stream) -> None:
    logits, labels, present = 3 * randn(stream, 6, 4), torch.tensor([0, 3, 1, 2, 0, 2]), [True, False, True, True]
    terms = []
    for i in range(6):
        total = 0.0
        for c in range(4):
            if present[c]:
                total += math.exp(logits[i, c])
        if present[labels[i]]:
            terms.append(-math.log(math.exp(logits[i, labels[i]]) / total))
    assert len(terms) == 5
    found = F.prototype_loss(logits, labels, torch.tensor(present))
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_prototype_loss_gradient(stream: Stream) -> None:
    for present in (ALL, torch.tensor([True, False, True])):
        assert gradcheck(lambda s, p=present: F.prototype_loss(s, CLASSES, p), randn(stream, 6, 3).requires_grad_())


def test_prototype_loss_and_bound_run_from_chance_to_perfect() -> None:
    constant, perfect = torch.zeros(6, 3), 1e4 * torch.eye(3)[CLASSES]
    assert float(F.prototype_loss(constant, CLASSES, ALL)) == pytest.approx(math.log(3))
    assert float(F.prototype_bound(constant, CLASSES, ALL)) == pytest.approx(0, abs=1e-6)
    assert float(F.prototype_loss(perfect, CLASSES, ALL)) == 0
    assert float(F.prototype_bound(perfect, CLASSES, ALL)) == pytest.approx(math.log(3))


def test_the_prototype_bound_counts_the_classes_that_are_there() -> None:
    present = torch.tensor([True, False, True])
    assert float(F.prototype_loss(torch.zeros(6, 3), CLASSES, present)) == pytest.approx(math.log(2))
    assert float(F.prototype_bound(1e4 * torch.eye(3)[CLASSES], CLASSES, present)) == pytest.approx(math.log(2))


def test_prototypes_of_other_classes_alone_give_zero_with_zero_gradient_and_measure_nothing() -> None:
    logits, labels = torch.ones(2, 3, requires_grad=True), torch.tensor([1, 1])
    present = torch.tensor([True, False, True])
    loss = F.prototype_loss(logits, labels, present)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert not gradient.any()
    assert torch.isnan(F.prototype_bound(logits, labels, present))


def test_class_mean_distance_equals_the_loop_over_classes_of_both_sides(stream: Stream) -> None:
    synthetic, real = randn(stream.at("synthetic"), 4, 3), randn(stream.at("real"), 6, 3)
    synthetic_labels, real_labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0, 3, 3])  # 2 and 3 are alone
    distances = [
        sum(
            (float(synthetic[synthetic_labels == c, d].mean() - real[real_labels == c, d].mean())) ** 2
            for d in range(3)
        )
        for c in (0, 1)
    ]
    found = F.class_mean_distance(synthetic, real, synthetic_labels, real_labels, 5)
    assert float(found) == pytest.approx(sum(distances) / 2, rel=1e-12)


def test_class_mean_distance_gradient(stream: Stream) -> None:
    sides = [randn(stream.at(side), 4, 3).requires_grad_() for side in ("synthetic", "real")]
    labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 3])
    assert gradcheck(lambda a, b: F.class_mean_distance(a, b, *labels, 4), sides)


def test_class_mean_distance_is_zero_where_the_means_agree_and_four_across_the_sphere() -> None:
    points, labels = torch.eye(3), torch.arange(3)
    assert F.class_mean_distance(points, points, labels, labels, 3) == 0
    assert F.class_mean_distance(points, -points, labels, labels, 3) == 4


def test_class_mean_distance_without_a_common_class_is_zero_with_zero_gradient() -> None:
    points = torch.ones(2, 3, requires_grad=True)
    loss = F.class_mean_distance(points, torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([2, 3]), 4)
    (gradient,) = torch.autograd.grad(loss, points)
    assert loss == 0
    assert not gradient.any()


def test_layer_weights_of_three_layers() -> None:
    torch.testing.assert_close(F.layer_weights(3, 4.0), torch.tensor([0.25, 1.0, 4.0]))


def test_balanced_term_has_its_share_of_the_hosts_gradient(stream: Stream) -> None:
    host, term = randn(stream, 2, 5, 3)
    torch.testing.assert_close((F.balance(host, term, 0.3) * term).norm(), 0.3 * host.norm())


def test_balance_of_a_term_without_gradient_is_zero() -> None:
    assert F.balance(torch.ones(3), torch.zeros(3), 0.3) == 0


def test_without_a_host_lambda_means_itself() -> None:
    assert F.balance(torch.zeros(3), torch.ones(3), 0.3) == torch.tensor(0.3)
