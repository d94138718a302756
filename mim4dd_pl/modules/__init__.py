"""LightningModules: wiring, optimisers and the names of logs."""

from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.experts import ExpertModule

__all__ = ["DistillationModule", "ExpertModule"]
