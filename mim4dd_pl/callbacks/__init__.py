"""What happens around training; callbacks read and never steer."""

from mim4dd_pl.callbacks.analysis import Analysis
from mim4dd_pl.callbacks.checkpoint import LastCheckpoint
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.diagnostics import Diagnostics
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.pictures import Pictures
from mim4dd_pl.callbacks.preemption import Preemption, answering_signals
from mim4dd_pl.callbacks.progress import StepProgress
from mim4dd_pl.callbacks.storage import AtomicCheckpointIO

__all__ = [
    "Analysis",
    "AtomicCheckpointIO",
    "ClosingTable",
    "Diagnostics",
    "Evaluation",
    "Export",
    "LastCheckpoint",
    "Pictures",
    "Preemption",
    "StepProgress",
    "answering_signals",
]
