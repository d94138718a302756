"""What the synthetic images should match."""

from mim4dd_pl.objectives.base import Match, Objective
from mim4dd_pl.objectives.unrolled import TrajectoryMatching

__all__ = ["Match", "Objective", "TrajectoryMatching"]
