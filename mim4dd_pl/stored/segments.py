"""Which segments of which experts an outer step reads, and reading them ahead."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.stored.trajectories import Segment, TrajectoryStore


@dataclass(frozen=True)
class MovingWindow:
    r"""Start epochs that grow harder: the upper end of their range moves up during the first outer steps.

    .. math:: t < T(s) = \min\big(T_0 + \lfloor (T_{max} - T_0)\, s / S \rfloor,\ T_{max}\big)

    Source: Guo et al. 2024, DATM (arXiv:2310.05773), Section 3.2.

    Args:
        first: T_0; the upper end at outer step 0, above ``lowest``.
        steps: S; outer steps until it has reached ``max_start_epoch``, at least 1.
        lowest: The earliest start epoch.
    """

    first: int
    steps: int
    lowest: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < self.first or self.steps < 1:
            raise ValueError(
                f"0 <= lowest < first and steps of at least 1 are needed, got lowest {self.lowest}, first {self.first} "
                f"and steps {self.steps}."
            )

    def at(self, step: int, max_start_epoch: int) -> range:
        """Start epochs of outer step s."""
        moved = self.first + (max_start_epoch - self.first) * step // self.steps
        return range(self.lowest, min(moved, max_start_epoch))


class Epochs(ABC):
    """Which two epochs of an expert a segment reads."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The latest epoch that is ever read."""

    @abstractmethod
    def draw(self, step: int, generator: torch.Generator) -> tuple[int, int]:
        """First and second epoch of a segment of outer step ``step``."""


@dataclass(frozen=True)
class Spans(Epochs):
    """Segments from epoch t to t + M, with t uniform in a range.

    Args:
        max_start_epoch: t lies in 0..max_start_epoch-1; at least 1.
        expert_epochs: M, at least 1.
        moving: Narrows the range in early outer steps; not by default.
    """

    max_start_epoch: int
    expert_epochs: int
    moving: MovingWindow | None = None

    def __post_init__(self) -> None:
        check_positive(max_start_epoch=self.max_start_epoch, expert_epochs=self.expert_epochs)
        if self.moving is not None and self.moving.first > self.max_start_epoch:
            raise ValueError(
                f"moving.first must be at most max_start_epoch, got {self.moving.first} and {self.max_start_epoch}."
            )

    @property
    def last(self) -> int:
        return self.max_start_epoch - 1 + self.expert_epochs

    def starts(self, step: int) -> range:
        """The start epochs that outer step s draws from."""
        return range(self.max_start_epoch) if self.moving is None else self.moving.at(step, self.max_start_epoch)

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, int]:
        starts = self.starts(step)
        epoch = starts[int(torch.randint(len(starts), (), generator=generator))]
        return epoch, epoch + self.expert_epochs


@dataclass(frozen=True)
class Stages(Epochs):
    """An epoch t, uniform in 0..E, and a later one, uniform in t..min(t + gap, E).

    Args:
        last_epoch: E, at least 0.
        gap: The second epoch is at most so much later, at least 0.
    """

    last_epoch: int
    gap: int

    def __post_init__(self) -> None:
        if self.last_epoch < 0 or self.gap < 0:
            raise ValueError(f"last_epoch and gap must be at least 0, got {self.last_epoch} and {self.gap}.")

    @property
    def last(self) -> int:
        return self.last_epoch

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, int]:
        epoch = int(torch.randint(self.last_epoch + 1, (), generator=generator))
        latest = min(epoch + self.gap, self.last_epoch)
        return epoch, epoch + int(torch.randint(latest - epoch + 1, (), generator=generator))


@dataclass(frozen=True)
class Ends(Epochs):
    """The first and the last epoch, always.

    Args:
        last_epoch: E, at least 1.
    """

    last_epoch: int

    def __post_init__(self) -> None:
        check_positive(last_epoch=self.last_epoch)

    @property
    def last(self) -> int:
        return self.last_epoch

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, int]:
        return 0, self.last_epoch


class SegmentReader:
    """Reads each segment while the one before it is in use, in a thread of its own.

    Args:
        read: (step, index) -> the segment; called in order, possibly for one more than is ever asked for.
        numbers: Of the segments of a step that are read.
    """

    def __init__(self, read: Callable[[int, int], Segment], numbers: range) -> None:
        self._read = read
        self._numbers = numbers
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ahead: dict[tuple[int, int], Future[Segment]] = {}

    def read(self, step: int, index: int) -> Segment:
        """Segment ``index`` of ``step``."""
        wanted = self._ahead.get((step, index)) or self._thread.submit(self._read, step, index)
        after = index + self._numbers.step
        following = (step, after) if after in self._numbers else (step + 1, self._numbers[0])
        self._ahead = {following: self._thread.submit(self._read, *following)}
        return wanted.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def draw_segment(
    store: TrajectoryStore, num_experts: int, epochs: Epochs, stream: Stream, step: int, index: int
) -> Segment:
    """Segment ``index`` of outer step ``step``, of a random expert.

    Args:
        store: Finished trajectories.
        num_experts: How many of them there are.
        epochs: Which of their epochs.
        stream: Decides; the node of a segment is ("segment", step, index, "expert").
        step: s.
        index: Of the segment.
    """
    generator = stream.at("segment", step, index, "expert").generator()
    expert = int(torch.randint(num_experts, (), generator=generator))
    first, second = epochs.draw(step, generator)
    return store.segment(expert, first, second - first)
