"""What the course of a run shows: the matching loss, the student's learning rate, the accuracy."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from mim4dd_pl.basics.names import STUDENT_LR, VALIDATION_ACCURACY
from mim4dd_pl.diagnostics.base import Symptom, Values, relative

SWING = math.log(2)
"""Typical change of the loss from one step to the next, in nats, beyond which it oscillates. Segments differ, and so do
their losses: by about a fifth; a factor of two, time after time, is the step length."""

EXPLODED = 5.0
"""Times what the loss was before: segments differ by less than that."""

DRIFT = 10.0
"""Times its start by which the student's learning rate may move either way."""

STUDENT_LR_FLOOR = "student_lr/floor"
RANDOM_ACCURACY = f"{VALIDATION_ACCURACY}_random_real"
"""Of a reading alone, not of the logs."""

_TOUCHES = 1 + 1e-6  # the floor as a float32 differs from the setting


def loss_course(losses: Sequence[float], latest: int) -> dict[str, float]:
    r"""Level and swing of the latest losses of a run, from the logarithms of their steps.

    .. math:: \mathrm{swing} = \mathrm{median}_i\, | \Delta_i - \bar\Delta |, \qquad \Delta_i = \ln l_{i+1} - \ln l_i

    The mean change is the trend: a loss that falls steadily does not swing, whatever its pace; one that doubles and
    halves in turn swings by ln 2. The median ignores single segments that are far off.

    Args:
        losses: One for each outer step, oldest first, not empty; those that are not positive have no logarithm, and
            then there is no swing.
        latest: How many of them make the level, their median.
    """
    found = {"loss/level": median(losses[-latest:])}
    if len(losses) > 2 and min(losses) > 0:
        logs = [math.log(loss) for loss in losses]
        trend = (logs[-1] - logs[0]) / (len(logs) - 1)
        found["loss/swing"] = median(abs(after - before - trend) for before, after in pairwise(logs))
    return found


class Oscillation(Symptom):
    """Typical change of the logarithm of the matching loss from step to step, about its trend."""

    name = "oscillation"
    reads = ("loss/swing",)
    sentence = (
        "the matching loss oscillates: from step to step it typically changes by {value:.2f} nats (0.69 is a factor of "
        "two). Steps overshoot. Lower model.lr_images or model.lr_student_lr, set or lower model.image_gradient_clip, "
        "or raise model.segments_per_step."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return now["loss/swing"]

    def fires(self, course: Sequence[float], window: int) -> bool:
        return len(course) >= window and course[-1] > SWING


class Explosion(Symptom):
    """The matching loss in units of that of the first step."""

    name = "explosion"
    reads = ("loss/level",)
    sentence = (
        "the matching loss explodes: it is {value:.3g} times that of the first step and far above what it was since. "
        "The images have left the region in which students can learn from them. Lower model.lr_images, set or lower "
        "model.image_gradient_clip, or lower model.student_lr or model.lr_student_lr."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return relative(now["loss/level"], start["loss/level"])

    def fires(self, course: Sequence[float], window: int) -> bool:
        return len(course) > 1 and course[-1] > EXPLODED * median(course[:-1])


class StudentLrAtFloor(Symptom):
    """The student's learning rate in units of its floor; none where it starts there."""

    name = "student_lr_at_floor"
    reads = (STUDENT_LR, STUDENT_LR_FLOOR)
    sentence = (
        "the student's learning rate has fallen to its floor, model.min_student_lr ({value:.3g} times it). Students do "
        "best not to learn from these images; without the floor it would turn negative. Lower model.lr_student_lr, and "
        "if that is of no help lower model.lr_images."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        floor = _TOUCHES * now[STUDENT_LR_FLOOR]
        return now[STUDENT_LR] / now[STUDENT_LR_FLOOR] if start[STUDENT_LR] > floor else None

    def fires(self, course: Sequence[float], window: int) -> bool:
        return course[-1] <= _TOUCHES


class StudentLrDrift(Symptom):
    """The student's learning rate in units of where it began."""

    name = "student_lr_drift"
    reads = (STUDENT_LR,)
    sentence = (
        "the student's learning rate has drifted to {value:.3g} times its start. Either the start was far off, then "
        "set model.student_lr to what it is now, or it is not under control: lower model.lr_student_lr."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return relative(now[STUDENT_LR], start[STUDENT_LR])

    def fires(self, course: Sequence[float], window: int) -> bool:
        return not 1 / DRIFT < course[-1] < DRIFT


class BelowRandom(Symptom):
    """Validation accuracy of the distilled set minus that of as many random real images."""

    name = "below_random"
    reads = (VALIDATION_ACCURACY, RANDOM_ACCURACY)
    sentence = (
        "students of the learned images fall behind those of as many random real images: {value:+.1%} on the "
        "validation images, at two validations in a row. The host does not teach what it should. Lower "
        "model.lr_images, train the experts better (model.experts.training), or raise trainer.max_steps if the loss "
        "still falls."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return now[VALIDATION_ACCURACY] - now[RANDOM_ACCURACY]

    def fires(self, course: Sequence[float], window: int) -> bool:
        return len(course) > 1 and max(course[-2:]) < 0
