"""What is known of a fit at one moment, as numbers by name: what it logs, and what is added here.

With d(i, j) the Euclidean distance of two images as the networks see them (normalised pixels), ``images/within`` is
the mean of d over pairs of one class, ``images/between`` over pairs of two classes, ``images/nearest`` the smallest of
the latter. ``loss/level`` and ``loss/swing`` are those of :func:`loss_course`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from mim4dd_pl.basics.names import VALIDATION_ACCURACY, VALIDATION_STD

Values = Mapping[str, float]
"""A reading: numbers by name."""

WITHIN, BETWEEN, NEAREST = "images/within", "images/between", "images/nearest"
LEVEL, SWING = "loss/level", "loss/swing"
STUDENT_LR_FLOOR = "student_lr/floor"
RANDOM_ACCURACY, RANDOM_STD = f"{VALIDATION_ACCURACY}_random_real", f"{VALIDATION_STD}_random_real"
STUDENTS = "validation/students"
"""How many students each mean and std is over."""


def image_distances(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean distances within and between classes, and the smallest between; what has no pair is left out.

    Args:
        images: Shape (S, ...).
        labels: Shape (S,).
    """
    flat = images.detach().flatten(1)
    distance = torch.cdist(flat, flat)  # (S, S)
    same = labels[:, None] == labels[None, :]
    pairs = torch.ones_like(same).triu(diagonal=1)
    within, between = distance[pairs & same], distance[pairs & ~same]
    found = {WITHIN: within.mean()} if len(within) else {}
    if len(between):
        found |= {BETWEEN: between.mean(), NEAREST: between.min()}
    return {name: value.item() for name, value in found.items()}


def loss_course(losses: Sequence[float], latest: int) -> dict[str, float]:
    r"""Level and swing of the latest losses of a run, from the logarithms of their steps.

    .. math:: \mathrm{swing} = \mathrm{median}_i\, | \Delta_i - \bar\Delta |, \qquad \Delta_i = \ln l_{i+1} - \ln l_i

    The mean change is the trend: a loss that falls steadily does not swing, whatever its pace; one that doubles and
    halves in turn swings by ln 2. The median ignores single segments that are far off.

    Args:
        losses: One for each outer step, oldest first, not empty; those that are not positive have no logarithm, and
            then there is no swing.
        latest: How many of them make the level, their median.
    """
    found = {LEVEL: median(losses[-latest:])}
    if len(losses) > 2 and min(losses) > 0:
        logs = [math.log(loss) for loss in losses]
        trend = (logs[-1] - logs[0]) / (len(logs) - 1)
        found[SWING] = median(abs(after - before - trend) for before, after in pairwise(logs))
    return found


def window_length(max_steps: int, every_n_steps: int) -> int:
    """Readings in a window: a fifth of the run, at most 500 outer steps, and never fewer than five readings.

    Five that agree by chance are one in 32 where each is a toss of a coin.

    Args:
        max_steps: Outer steps of the run; negative if it has no end.
        every_n_steps: Outer steps between two readings.
    """
    steps = 500 if max_steps < 0 else min(round(max_steps / 5), 500)
    return max(5, steps // every_n_steps)
