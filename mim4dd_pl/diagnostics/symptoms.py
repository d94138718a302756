"""All symptoms that a fit is watched for."""

from mim4dd_pl.diagnostics.critic import DeadCritic, DrownedHost, SaturatedCritic, UnheardTerm
from mim4dd_pl.diagnostics.images import ClassesMeet, ClassOverlap, WithinClassCollapse
from mim4dd_pl.diagnostics.progress import BelowRandom, Explosion, Oscillation, StudentLrAtFloor, StudentLrDrift

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
