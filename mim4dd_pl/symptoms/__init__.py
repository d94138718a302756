"""What can be seen to go wrong in a distillation, from the numbers that it logs; nothing here knows of Lightning."""

from mim4dd_pl.symptoms.base import Symptom, Values, window_length
from mim4dd_pl.symptoms.critic import DeadCritic, DrownedHost, SaturatedCritic, UnheardTerm
from mim4dd_pl.symptoms.images import ClassesMeet, ClassOverlap, WithinClassCollapse, image_distances
from mim4dd_pl.symptoms.progress import (
    BelowRandom,
    Explosion,
    Oscillation,
    StudentLrAtFloor,
    StudentLrDrift,
    loss_course,
)

__all__ = [
    "SYMPTOMS",
    "BelowRandom",
    "ClassOverlap",
    "ClassesMeet",
    "DeadCritic",
    "DrownedHost",
    "Explosion",
    "Oscillation",
    "SaturatedCritic",
    "StudentLrAtFloor",
    "StudentLrDrift",
    "Symptom",
    "UnheardTerm",
    "Values",
    "WithinClassCollapse",
    "image_distances",
    "loss_course",
    "window_length",
]

SYMPTOMS = (
    WithinClassCollapse(),
    ClassOverlap(),
    ClassesMeet(),
    DeadCritic(),
    SaturatedCritic(),
    DrownedHost(),
    UnheardTerm(),
    Oscillation(),
    Explosion(),
    StudentLrAtFloor(),
    StudentLrDrift(),
    BelowRandom(),
)
"""All of them, in the order in which they are read."""
