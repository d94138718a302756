"""Which epochs of experts a host reads."""

from dataclasses import dataclass


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
                "model.objective.moving takes 0 <= lowest < first and steps of at least 1, got lowest "
                f"{self.lowest}, first {self.first} and steps {self.steps}."
            )

    def at(self, step: int, max_start_epoch: int) -> range:
        """Start epochs of outer step s."""
        moved = self.first + (max_start_epoch - self.first) * step // self.steps
        return range(self.lowest, min(moved, max_start_epoch))


@dataclass(frozen=True)
class Epochs:
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
        for name in ("max_start_epoch", "expert_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.objective.{name} must be at least 1, got {getattr(self, name)}.")
        if self.moving is not None and self.moving.first > self.max_start_epoch:
            raise ValueError(
                "model.objective.moving.first must be at most model.objective.max_start_epoch, got "
                f"{self.moving.first} and {self.max_start_epoch}."
            )

    @property
    def last(self) -> int:
        """The latest epoch that is ever read."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def starts(self, step: int) -> range:
        """The start epochs that outer step s draws from."""
        return range(self.max_start_epoch) if self.moving is None else self.moving.at(step, self.max_start_epoch)
