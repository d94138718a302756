"""Accuracies from counts, and the scores that are made of them."""

import json
import math

import pytest
import torch

from mim4dd_pl.population.scores import Score, label_robust_score


@pytest.fixture
def score() -> Score:
    """Two students on 4 + 4 images of classes 0 and 1; class 2 has none."""
    confusion = torch.tensor([[[3, 1, 0], [0, 4, 0], [0, 0, 0]], [[1, 2, 1], [2, 2, 0], [0, 0, 0]]])
    return Score("random real images", "ConvNet", 3, 0.01, confusion)


def test_accuracy_is_the_share_of_the_diagonal(score: Score) -> None:
    assert score.accuracies.tolist() == [7 / 8, 3 / 8]
    assert score.mean == pytest.approx(5 / 8)
    assert score.std == pytest.approx(torch.tensor([7 / 8, 3 / 8]).std().item())


def test_per_class_accuracy_is_the_diagonal_over_the_row(score: Score) -> None:
    assert score.per_class[:2].tolist() == [pytest.approx((3 / 4 + 1 / 4) / 2), pytest.approx((4 / 4 + 2 / 4) / 2)]
    assert math.isnan(score.per_class[2])


def test_a_score_is_json_without_nan(score: Score) -> None:
    content = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert content["per_class"][2] is None
    assert content["confusion"] == [[4, 3, 1], [2, 6, 0], [0, 0, 0]]
    assert content["students"] == 2


def test_the_label_robust_score_of_dd_ranking() -> None:
    """Limits, and one value computed by hand: a = 0.5 * 0.3 - 0.5 * 0.2 = 0.05."""
    assert label_robust_score(0.2, 0.3) == pytest.approx((math.exp(0.05) - 0.36787944) / (2.71828183 - 0.36787944))
    assert label_robust_score(-1, 1) == pytest.approx(1)
    assert label_robust_score(1, -1) == pytest.approx(0)
