"""How long the parts of a run take on this machine."""

from mim4dd_pl.measuring.outer import outer_steps
from mim4dd_pl.measuring.parts import classification, seconds, training_step

__all__ = ["classification", "outer_steps", "seconds", "training_step"]
