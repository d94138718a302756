"""What accuracies say about a distilled set: from confusion matrices to the scores of DD-Ranking, all as fractions.

Source of HLR, IOR and LRS: Li et al. 2025, DD-Ranking (arXiv:2505.13300).
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def accuracies(confusion: Tensor) -> Tensor:
    """Fraction of correct answers, shape (n,), of n confusion matrices (n, C, C)."""
    return confusion.diagonal(dim1=1, dim2=2).sum(1) / confusion.sum((1, 2))


@dataclass(frozen=True)
class Score:
    """How some students, each trained on a set of the same kind, classify held-out images.

    Args:
        trained_on: What they were trained on, in words.
        network: Their architecture.
        images: How many images each was trained on.
        lr: Learning rate they were trained with.
        confusion: Held-out images of class i (row) that a student took for class j (column), shape (n, C, C).
    """

    trained_on: str
    network: str
    images: int
    lr: float
    confusion: Tensor

    @property
    def accuracies(self) -> Tensor:
        """Fraction of correct answers of each student, shape (n,)."""
        return accuracies(self.confusion)

    @property
    def mean(self) -> float:
        """Mean accuracy of the students."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation of their accuracies, with the n - 1 of a sample; NaN for a single student."""
        return float(self.accuracies.std()) if len(self.confusion) > 1 else math.nan

    @property
    def per_class(self) -> Tensor:
        """Mean accuracy on the images of each class, shape (C,); NaN for a class without held-out images."""
        return (self.confusion.diagonal(dim1=1, dim2=2) / self.confusion.sum(2)).mean(0)

    def as_dict(self) -> dict[str, Any]:
        """Plain types for a file; the confusion matrix added over the students."""
        per_class = [None if math.isnan(value) else value for value in self.per_class.tolist()]
        return {
            "trained_on": self.trained_on,
            "network": self.network,
            "images": self.images,
            "lr": self.lr,
            "students": len(self.confusion),
            "accuracy": self.mean,
            "std": self.std,
            "per_class": per_class,
            "confusion": self.confusion.sum(0).tolist(),
        }


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    r"""LRS: HLR and IOR in one number in [0, 1], higher is better.

    .. math:: \frac{e^{a} - e^{-1}}{e - e^{-1}},\qquad a = w\,\mathrm{IOR} - (1 - w)\,\mathrm{HLR}

    One where HLR is -1 and IOR 1, zero the other way round.

    Args:
        hlr: Hard label recovery, accuracy on the whole set minus that on the distilled one, both with hard labels:
            what distillation lost.
        ior: Improvement over random, accuracy on the distilled set minus that on as many random real images.
        weight: w, in [0, 1].
    """
    a = weight * ior - (1 - weight) * hlr
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
