"""What the synthetic images should match."""

from mim4dd_pl.objectives.base import Match, Objective, Scene
from mim4dd_pl.objectives.distribution_matching import DistributionMatching
from mim4dd_pl.objectives.epochs import Epochs, MovingWindow
from mim4dd_pl.objectives.gradient_matching import GradientMatching
from mim4dd_pl.objectives.information_alone import InformationAlone
from mim4dd_pl.objectives.performance_matching import PerformanceMatching
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching

__all__ = [
    "DistributionMatching",
    "Epochs",
    "GradientMatching",
    "InformationAlone",
    "Match",
    "MovingWindow",
    "Objective",
    "PerformanceMatching",
    "Scene",
    "TrajectoryMatching",
]
