"""What the learned images themselves show: whether those of a class grow alike, and whether classes keep apart.

With d(i, j) the Euclidean distance of two images as the networks see them (normalised pixels), ``images/within`` is
the mean of d over pairs of one class, ``images/between`` over pairs of two classes, ``images/nearest`` the smallest of
the latter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd_pl.diagnostics.base import Symptom, Values, relative

COLLAPSED = 0.5
"""Images of a class that have lost half of their mean distance: learned pixels move away from where they began, in
directions of their own, so that distances usually grow."""

OVERLAP = 0.8
"""How much nearer to each other classes may come, in units of the distance within them and of the start: real photos
of two classes are about as far apart as those of one, so the start's own ratio is the scale."""

MET = 0.25
"""Share of the start's smallest distance between two classes below which they have met."""


def image_distances(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean distances within and between classes, and the smallest between; what has no pair is left out.

    Args:
        images: Shape (S, ...).
        labels: Shape (S,).
    """
    flat = images.detach().flatten(1)
    distance = torch.cdist(flat, flat)  # (S, S)
    same = labels[:, None] == labels[None, :]
    pairs = torch.ones_like(same).triu(diagonal=1)
    within, between = distance[pairs & same], distance[pairs & ~same]
    found = {"within": within.mean()} if len(within) else {}
    if len(between):
        found |= {"between": between.mean(), "nearest": between.min()}
    return {f"images/{name}": value.item() for name, value in found.items()}


class WithinClassCollapse(Symptom):
    """Mean distance of two images of a class, in units of that at the start."""

    name = "within_class_collapse"
    reads = ("images/within",)
    sentence = (
        "learned images of a class grow alike: their mean distance is {value:.2f} of that at the start. The later "
        "ones then teach nothing new; usually all of a class are drawn to one point. Lower "
        "model.information.init_args.weight if there is the term, lower model.lr_images, or lower "
        "model.images_per_class."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return relative(now["images/within"], start["images/within"])

    def fires(self, course: Sequence[float], window: int) -> bool:
        return course[-1] < COLLAPSED


class ClassOverlap(Symptom):
    """Mean distance between classes over that within them, in units of this ratio at the start."""

    name = "class_overlap"
    reads = ("images/within", "images/between")
    sentence = (
        "classes overlap: distances between classes, measured by those within them, are {value:.2f} of what they were "
        "at the start. Images then differ for reasons other than their class, usually because steps are too long. "
        "Lower model.lr_images, or set or lower model.image_gradient_clip."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        ratio, first = (relative(values["images/between"], values["images/within"]) for values in (now, start))
        return None if ratio is None or first is None else relative(ratio, first)

    def fires(self, course: Sequence[float], window: int) -> bool:
        return course[-1] < OVERLAP


class ClassesMeet(Symptom):
    """Smallest distance between images of two classes, in units of that at the start."""

    name = "classes_meet"
    reads = ("images/nearest",)
    sentence = (
        "two classes have met: the smallest distance between their images is {value:.2f} of that at the start. Two "
        "labels for one image cannot be learned; usually steps are too long or the images have collapsed. Lower "
        "model.lr_images, or set or lower model.image_gradient_clip."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return relative(now["images/nearest"], start["images/nearest"])

    def fires(self, course: Sequence[float], window: int) -> bool:
        return course[-1] < MET
