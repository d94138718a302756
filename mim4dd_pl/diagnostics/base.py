"""A symptom: one number that is followed over a run, and the rule by which it is worth a word.

A *reading* is what is known at one moment, as numbers by name: what the run logs (``train/matching_loss``), and what
:func:`~mim4dd_pl.symptoms.images.image_distances` and :func:`~mim4dd_pl.symptoms.progress.loss_course` add. A symptom
measures one number of each reading in which its names occur; its *course* is the list of these. A *window* is how many
of the latest of them must agree where a single one may be chance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

Values = Mapping[str, float]
"""A reading: numbers by name."""

FEWEST = 5
"""Readings in the shortest window: five that agree by chance are one in 32 where each is a toss of a coin."""


class Symptom(ABC):
    """What is measured, when it is worth a word, and the word.

    Attributes:
        name: It is logged as ``diagnostics/<name>``.
        reads: Names without which a reading says nothing about it.
        sentence: What is seen, what it usually means, which setting to turn; ``{value}`` is the measured number.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    sentence: ClassVar[str]

    def measured(self, now: Values, start: Values) -> float | None:
        """The number for this reading, None if it cannot be known.

        Args:
            now: The reading.
            start: The first value of each name in this run.
        """
        if any(name not in now for name in self.reads):
            return None
        value = self.measure(now, start)
        return value if value is not None and math.isfinite(value) else None

    @abstractmethod
    def measure(self, now: Values, start: Values) -> float | None:
        """The same, where everything in ``reads`` is known."""

    @abstractmethod
    def fires(self, course: Sequence[float], window: int) -> bool:
        """Whether the course so far, of which the last is new, is the symptom.

        Args:
            course: What was measured, oldest first, not empty.
            window: Readings that must agree.
        """

    def message(self, value: float) -> str:
        """The sentence for what was measured."""
        return self.sentence.format(value=value)


def lasting(course: Sequence[float], window: int, holds: Callable[[float], bool]) -> bool:
    """Whether there are ``window`` readings and ``holds`` is true of all the latest ones."""
    return len(course) >= window and all(map(holds, course[-window:]))


def relative(now: float, start: float) -> float | None:
    """``now`` in units of ``start``; None where that is zero."""
    return now / start if start else None


def window_length(max_steps: int, every_n_steps: int, share: float = 0.2, longest: int = 500) -> int:
    """Readings in a window: a fifth of the run, at most 500 outer steps, and never fewer than five readings.

    Args:
        max_steps: Outer steps of the run; negative if it has no end.
        every_n_steps: Outer steps between two readings.
        share: Of the run.
        longest: Outer steps.
    """
    steps = longest if max_steps < 0 else min(round(share * max_steps), longest)
    return max(FEWEST, steps // every_n_steps)
