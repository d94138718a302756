"""Dataset distillation by trajectory matching with a contrastive mutual-information term.

The names below are for use in other programs; each is imported when it is first asked for, and none brings Lightning
along, except ``distill``, which runs the whole program.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim4dd_pl.app.distill import distill
    from mim4dd_pl.basics.randomness import Stream
    from mim4dd_pl.data.augment import DSA
    from mim4dd_pl.engine.flat import FlatNetwork
    from mim4dd_pl.engine.unroll import ExactUnroll, unroll
    from mim4dd_pl.information.backward import balanced_backward
    from mim4dd_pl.information.critics import InfoNCECritic, SigmoidCritic
    from mim4dd_pl.information.heads import LinearHead
    from mim4dd_pl.information.term import InformationTerm
    from mim4dd_pl.objectives.synthetic import SyntheticImages
    from mim4dd_pl.population.evaluate import evaluate
    from mim4dd_pl.stored.dataset import DistilledDataset
    from mim4dd_pl.stored.trajectories import TrajectoryStore

__version__ = "0.1.0"

_HOMES = {
    "DSA": "data.augment",
    "DistilledDataset": "stored.dataset",
    "ExactUnroll": "engine.unroll",
    "FlatNetwork": "engine.flat",
    "InfoNCECritic": "information.critics",
    "InformationTerm": "information.term",
    "LinearHead": "information.heads",
    "SigmoidCritic": "information.critics",
    "Stream": "basics.randomness",
    "SyntheticImages": "objectives.synthetic",
    "TrajectoryStore": "stored.trajectories",
    "balanced_backward": "information.backward",
    "distill": "app.distill",
    "evaluate": "population.evaluate",
    "unroll": "engine.unroll",
}
"""The file of each public name: torch takes seconds to import, in which the program must answer Ctrl-C."""

__all__ = [
    "DSA",
    "DistilledDataset",
    "ExactUnroll",
    "FlatNetwork",
    "InfoNCECritic",
    "InformationTerm",
    "LinearHead",
    "SigmoidCritic",
    "Stream",
    "SyntheticImages",
    "TrajectoryStore",
    "__version__",
    "balanced_backward",
    "distill",
    "evaluate",
    "unroll",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
