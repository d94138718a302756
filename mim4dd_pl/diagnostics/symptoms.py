"""Symptoms of a fit that goes wrong: one number that is followed over a run, and the rule by which it is worth a word.

A symptom measures one number of each reading (:mod:`mim4dd_pl.diagnostics.readings`) in which its names occur; its
*course* is the list of these. A *window* is how many of the latest must agree where a single one may be chance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from mim4dd_pl.basics import names
from mim4dd_pl.diagnostics import readings
from mim4dd_pl.diagnostics.readings import Values

Measure = Callable[[Values, Values], float | None]
"""(reading, first value of each name in this run) -> the number; None if it cannot be known."""

Rule = Callable[[Sequence[float], int, Values], bool]
"""(course, of which the last is new; window; reading) -> whether it is the symptom."""


@dataclass(frozen=True)
class Symptom:
    """What is measured, when it is worth a word, and the word.

    Args:
        name: It is logged as ``diagnostics/<name>``.
        reads: Names without which a reading says nothing about it.
        measure: The number of a reading that has them.
        fires: When it is worth a word.
        sentence: What is seen, what it usually means, which setting to turn; ``{value}`` is the measured number,
            ``{points}`` the same in percentage points.
    """

    name: str
    reads: tuple[str, ...]
    measure: Measure
    fires: Rule
    sentence: str

    def measured(self, now: Values, start: Values) -> float | None:
        """The number for this reading, None if it cannot be known; arguments as of :data:`Measure`."""
        value = self.measure(now, start) if all(name in now for name in self.reads) else None
        return value if value is not None and math.isfinite(value) else None

    def message(self, value: float) -> str:
        """The sentence for what was measured."""
        return self.sentence.format(value=value, points=100 * value)


# --- measures


def of_start(name: str) -> Measure:
    """In units of the start."""
    return lambda now, start: now[name] / start[name] if start[name] else None


def class_overlap(now: Values, start: Values) -> float | None:
    """Mean distance between classes over that within them, in units of this ratio at the start."""
    if not (now[readings.WITHIN] and start[readings.WITHIN] and start[readings.BETWEEN]):
        return None
    return now[readings.BETWEEN] / now[readings.WITHIN] / (start[readings.BETWEEN] / start[readings.WITHIN])


def bound_of_ceiling(choose: Callable[..., float | None]) -> Measure:
    """The highest or lowest bound of a layer as a share of the ceiling; none where the bound is void."""

    def measure(now: Values, start: Values) -> float | None:
        bounds = [value for name, value in now.items() if name.startswith((names.LAYER_BOUND, names.LOGITS_BOUND))]
        ceiling = now[names.CEILING]
        return choose((bound / ceiling for bound in bounds), default=None) if ceiling > 0 else None

    return measure


def term_share(now: Values, start: Values) -> float | None:
    """The information term's share of the lengths of both pixel gradients, in [0, 1]; None if one of them is off."""
    host, term = now[names.HOST_GRADIENT], now[names.TERM_FACTOR] * now[names.TERM_GRADIENT]
    return term / (host + term) if host > 0 and term > 0 else None


def host_share(now: Values, start: Values) -> float | None:
    """The host's share of them."""
    share = term_share(now, start)
    return None if share is None else 1 - share


def above_floor(now: Values, start: Values) -> float | None:
    """The student's learning rate in units of its floor; none where it starts there."""
    floor = now[readings.STUDENT_LR_FLOOR]
    return now[names.STUDENT_LR] / floor if start[names.STUDENT_LR] > _TOUCHES * floor else None


# --- rules


def below(limit: float) -> Rule:
    """At the latest reading."""
    return lambda course, window, now: course[-1] < limit


def lasting(holds: Callable[[float], bool]) -> Rule:
    """At every reading of a window."""
    return lambda course, window, now: len(course) >= window and all(map(holds, course[-window:]))


def alone(course: Sequence[float], window: int, now: Values) -> bool:
    """On the mean of a window beyond 95 % of the pixel gradient, where the other term no longer counts."""
    return len(course) >= window and sum(course[-window:]) / window > 0.95


def fall_behind(course: Sequence[float], window: int, now: Values) -> bool:
    r"""At two readings in a row, by more than students differ by chance: two standard errors of the difference.

    .. math:: d < -2 \sqrt{(s^2 + s_\mathrm{random}^2) / K}
    """
    margin = 2 * math.hypot(now[names.VALIDATION_STD], now[readings.RANDOM_STD]) / math.sqrt(now[readings.STUDENTS])
    return len(course) > 1 and max(course[-2:]) < -margin


_TOUCHES = 1 + 1e-6  # the floor as a float32 differs from the setting
_LEARNED = (names.VALIDATION_ACCURACY, names.VALIDATION_STD)
_TERMS = (names.HOST_GRADIENT, names.TERM_GRADIENT, names.TERM_FACTOR)

SYMPTOMS = (
    Symptom(
        "within_class_collapse",
        (readings.WITHIN,),
        of_start(readings.WITHIN),
        # Learned pixels move away from where they began, in directions of their own, so that distances usually grow.
        below(0.5),
        "learned images of a class grow alike: their mean distance is {value:.2f} of that at the start. The later "
        "ones then teach nothing new; usually all of a class are drawn to one point. Lower "
        "model.information.init_args.weight if there is the term, lower model.lr_images, or lower "
        "model.images_per_class.",
    ),
    Symptom(
        "class_overlap",
        (readings.WITHIN, readings.BETWEEN),
        class_overlap,
        # Real photos of two classes are about as far apart as those of one, so the start's own ratio is the scale.
        below(0.8),
        "classes overlap: distances between classes, measured by those within them, are {value:.2f} of what they were "
        "at the start. Images then differ for reasons other than their class, usually because steps are too long. "
        "Lower model.lr_images, or set or lower model.image_gradient_clip.",
    ),
    Symptom(
        "classes_meet",
        (readings.NEAREST,),
        of_start(readings.NEAREST),
        below(0.25),
        "two classes have met: the smallest distance between their images is {value:.2f} of that at the start. Two "
        "labels for one image cannot be learned; usually steps are too long or the images have collapsed. Lower "
        "model.lr_images, or set or lower model.image_gradient_clip.",
    ),
    Symptom(
        "dead_critic",
        (names.CEILING,),
        bound_of_ceiling(max),
        # Zero nats, and what a random batch scatters about it.
        lasting(lambda share: share <= 0.01),
        "the critic is dead: no layer's information bound rises above {value:.1%} of its ceiling. It cannot tell pairs "
        "of one class from others, so its gradient is noise. Raise model.information.init_args.lr, lower the critic's "
        "temperature, or set model.information.init_args.networks to shared.",
    ),
    Symptom(
        "saturated_critic",
        (names.CEILING,),
        bound_of_ceiling(min),
        # From here on a bound has nothing left to gain.
        lasting(lambda share: share >= 0.98),
        "the critic is saturated: every layer's information bound is at {value:.1%} of its ceiling or above. It has "
        "nothing left to teach. Raise the critic's temperature, lower model.information.init_args.lr, or leave the "
        "term out (model.information null).",
    ),
    Symptom(
        "drowned_host",
        _TERMS,
        term_share,
        alone,
        "the information term drowns the host: it is {value:.1%} of the pixel gradient. The images follow the critic "
        "and forget the experts. Set model.information.init_args.balance to gradient, or lower "
        "model.information.init_args.weight.",
    ),
    Symptom(
        "unheard_term",
        _TERMS,
        host_share,
        alone,
        "the information term is not heard: the host is {value:.1%} of the pixel gradient. The term costs its time and "
        "changes nothing. Raise model.information.init_args.weight, or leave the term out (model.information null).",
    ),
    Symptom(
        "oscillation",
        (readings.SWING,),
        lambda now, start: now[readings.SWING],
        # Segments differ, and so do their losses: by about a fifth; a factor of two, time after time, is the step
        # length.
        lambda course, window, now: len(course) >= window and course[-1] > math.log(2),
        "the matching loss oscillates: from step to step it typically changes by {value:.2f} nats (0.69 is a factor of "
        "two). Steps overshoot. Lower model.lr_images or model.lr_student_lr, set or lower model.image_gradient_clip, "
        "or raise model.segments_per_step.",
    ),
    Symptom(
        "explosion",
        (readings.LEVEL,),
        of_start(readings.LEVEL),
        # Segments differ by less than five times what the loss was before.
        lambda course, window, now: len(course) > 1 and course[-1] > 5 * median(course[:-1]),
        "the matching loss explodes: it is {value:.3g} times that of the first step and far above what it was since. "
        "The images have left the region in which students can learn from them. Lower model.lr_images, set or lower "
        "model.image_gradient_clip, or lower model.student_lr or model.lr_student_lr.",
    ),
    Symptom(
        "student_lr_at_floor",
        (names.STUDENT_LR, readings.STUDENT_LR_FLOOR),
        above_floor,
        lambda course, window, now: course[-1] <= _TOUCHES,
        "the student's learning rate has fallen to its floor, model.min_student_lr ({value:.3g} times it). Students do "
        "best not to learn from these images; without the floor it would turn negative. Lower model.lr_student_lr, and "
        "if that is of no help lower model.lr_images.",
    ),
    Symptom(
        "student_lr_drift",
        (names.STUDENT_LR,),
        of_start(names.STUDENT_LR),
        # Ten times its start, either way.
        lambda course, window, now: not 0.1 < course[-1] < 10,
        "the student's learning rate has drifted to {value:.3g} times its start. Either the start was far off, then "
        "set model.student_lr to what it is now, or it is not under control: lower model.lr_student_lr.",
    ),
    Symptom(
        "below_random",
        (*_LEARNED, readings.RANDOM_ACCURACY, readings.RANDOM_STD, readings.STUDENTS),
        lambda now, start: now[names.VALIDATION_ACCURACY] - now[readings.RANDOM_ACCURACY],
        fall_behind,
        "students of the learned images fall behind those of as many random real images: {points:+.1f} percentage "
        "points on the validation images, at two validations in a row, more than students differ by chance. The host "
        "does not teach what it should. Lower model.lr_images, train the experts better (model.experts.training), or "
        "raise trainer.max_steps if the loss still falls.",
    ),
)
"""All of them, in the order in which they are read."""
