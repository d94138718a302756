"""Distances among learned and real images against loops, and their limits."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mim4dd_pl.analysis.neighbours import (
    find_neighbours,
    mean_overlap,
    mean_pairwise_distance,
    nearest,
    neighbour_overlap,
)
from mim4dd_pl.basics.randomness import Stream
from tests.conftest import randn


@pytest.fixture
def real(stream: Stream) -> Tensor:
    return randn(stream.at("real"), 20, 6)


@pytest.fixture
def learned(stream: Stream) -> Tensor:
    return randn(stream.at("learned"), 8, 6)


LABELS = torch.arange(2).repeat_interleave(4)


def test_nearest_equals_a_loop_however_the_vectors_are_cut(learned: Tensor, real: Tensor) -> None:
    own = torch.tensor([-1, 3, 19, -1, 0, 7, 8, -1])
    expected = []
    for query, number in zip(learned, own.tolist(), strict=True):
        expected.append(min((float((query - x).norm()), row) for row, x in enumerate(real) if row != number))
    for size in (1, 8, 20):
        distance, index = nearest(learned, own, real.split(size))
        assert index.tolist() == [row for _, row in expected]
        assert distance.tolist() == pytest.approx([value for value, _ in expected])


def test_a_copy_is_at_distance_zero_in_single_precision_too(real: Tensor) -> None:
    far = (real + 1000).float()  # where the products lose all digits of a distance
    found = find_neighbours(far[[4, 11]], far, torch.arange(20), far.split(7))
    assert found.ratio.tolist() == [0, 0]


def test_what_is_typical_is_the_median_distance_of_real_images_from_each_other(learned: Tensor, real: Tensor) -> None:
    rows = torch.tensor([2, 5, 9])
    found = find_neighbours(learned, real[rows], rows, real.split(6))
    smallest = [min(float((real[row] - x).norm()) for at, x in enumerate(real) if at != row) for row in rows.tolist()]
    assert float(found.typical) == pytest.approx(sorted(smallest)[1])
    torch.testing.assert_close(found.ratio, found.distance / sorted(smallest)[1])


def test_nothing_is_usual_where_real_images_are_copies_of_each_other(learned: Tensor, real: Tensor) -> None:
    twice = torch.cat([real, real])
    found = find_neighbours(learned, twice, torch.arange(40), twice.split(9))
    assert found.typical == 0
    assert not found.ratio.isfinite().any()


def test_ratios_and_fractions_do_not_see_the_scale(learned: Tensor, real: Tensor) -> None:
    ratios, overlaps = [], []
    for scale in (1, 50):
        a, b = scale * learned, scale * real
        ratios.append(find_neighbours(a, b, torch.arange(20), [b]).ratio)
        overlaps.append((float(neighbour_overlap(a, LABELS)), float(mean_overlap(a, LABELS, b, torch.arange(20) % 2))))
    torch.testing.assert_close(*ratios)
    assert overlaps[0] == overlaps[1]


def test_mean_pairwise_distance_equals_a_loop_and_needs_two_images(learned: Tensor) -> None:
    labels = torch.tensor([0, 0, 0, 0, 2, 1, 2, 2])
    means = mean_pairwise_distance(learned, labels, 4)
    for label in (0, 2):
        members = learned[labels == label]
        distances = [float((a - b).norm()) for a, b in combinations(members, 2)]
        assert float(means[label]) == pytest.approx(sum(distances) / len(distances))
    assert means[1].isnan()
    assert means[3].isnan()


def test_overlap_equals_a_loop(learned: Tensor, real: Tensor) -> None:
    real_labels = torch.arange(20) % 2
    by_neighbour, by_mean = [], []
    for row, (x, label) in enumerate(zip(learned, LABELS.tolist(), strict=True)):
        near = min((float((x - z).norm()), int(LABELS[at])) for at, z in enumerate(learned) if at != row)
        by_neighbour.append(near[1] != label)
        means = [real[real_labels == each].mean(0) for each in (0, 1)]
        by_mean.append(min((float((x - mean).norm()), each) for each, mean in enumerate(means))[1] != label)
    assert float(neighbour_overlap(learned, LABELS)) == sum(by_neighbour) / 8
    assert float(mean_overlap(learned, LABELS, real, real_labels)) == sum(by_mean) / 8


def test_classes_apart_do_not_overlap_and_exchanged_ones_do_wholly(learned: Tensor) -> None:
    apart = learned + 100 * LABELS[:, None]
    assert float(neighbour_overlap(apart, LABELS)) == 0
    assert float(mean_overlap(apart, LABELS, apart, LABELS)) == 0
    assert float(mean_overlap(apart, 1 - LABELS, apart, LABELS)) == 1


def test_images_without_others_of_their_class_do_not_count(learned: Tensor, real: Tensor) -> None:
    assert math.isnan(neighbour_overlap(learned, torch.arange(8)))
    alone = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    apart = learned + 100 * (alone > 0)[:, None]
    assert float(neighbour_overlap(apart, alone)) == 0
    assert float(mean_overlap(apart, alone, apart[:5], alone[:5])) == 0
