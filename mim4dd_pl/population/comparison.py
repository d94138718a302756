"""What a few seeds say: mean and standard deviation, and paired differences with an interval. Plain floats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation with the n - 1 of a sample; None for fewer than two values, which say nothing of it."""
    return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class PairedDifference:
    """How much more one thing gives than another, measured n times side by side.

    Args:
        n: Pairs.
        mean: Mean of the differences.
        standard_error: Of that mean; None for a single pair.
        low: Lower end of the confidence interval; None for a single pair.
        high: Upper end.
    """

    n: int
    mean: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


def paired_difference(
    values: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> PairedDifference | None:
    r"""Mean of d_i = a_i - b_i, its standard error and its confidence interval; None without a pair.

    .. math:: \bar d \pm t_{n-1,\,(1+\gamma)/2}\; s_d / \sqrt{n}

    Where the interval holds zero, the pairs do not tell the two apart. It takes the differences as normal.

    Source: Student 1908, The probable error of a mean.

    Args:
        values: a_1 .. a_n.
        reference: b_1 .. b_n, from the same seeds in the same order.
        confidence: gamma, in (0, 1).

    Raises:
        ValueError: If their numbers differ.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    if not differences:
        return None
    n, mean, std = len(differences), fmean(differences), sample_std(differences)
    if std is None:
        return PairedDifference(n, mean)
    from scipy.stats import t  # slow to import, and needed here only

    standard_error = std / math.sqrt(n)
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * standard_error
    return PairedDifference(n, mean, standard_error, mean - reach, mean + reach)
