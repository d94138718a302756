"""Paired differences against scipy, and what too few seeds cannot say."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mim4dd_pl.population.comparison import PairedDifference, paired_difference, sample_std

A, B = (0.931, 0.934, 0.925, 0.929), (0.928, 0.935, 0.919, 0.921)


def test_std_is_that_of_a_sample() -> None:
    assert sample_std(A) == pytest.approx(np.std(A, ddof=1))


def test_the_std_of_one_value_is_none() -> None:
    assert sample_std([0.9]) is None


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_that_of_the_paired_t_test(confidence: float) -> None:
    found, expected = paired_difference(A, B, confidence), ttest_rel(A, B)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(confidence)))
    assert found.standard_error == pytest.approx(found.mean / expected.statistic)
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))
    assert found.n == 4


def test_turned_round_it_changes_sign() -> None:
    one, other = paired_difference(A, B), paired_difference(B, A)
    assert one is not None
    assert other is not None
    assert (one.mean, one.low) == pytest.approx((-other.mean, -(other.high or 0)))


def test_equal_differences_leave_no_doubt() -> None:
    found = paired_difference((0.5, 0.75), (0.25, 0.5))
    assert found == PairedDifference(n=2, mean=0.25, standard_error=0.0, low=0.25, high=0.25)


def test_one_pair_has_no_interval() -> None:
    assert paired_difference((0.75,), (0.5,)) == PairedDifference(n=1, mean=0.25)


def test_no_pair_has_no_difference() -> None:
    assert paired_difference((), ()) is None


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference((0.5, 0.6), (0.5,))
