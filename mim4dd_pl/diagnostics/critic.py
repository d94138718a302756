"""What the information term shows: whether its critic still teaches, and whether both terms move the pixels."""

from collections.abc import Sequence

from mim4dd_pl.basics.names import CEILING, HOST_GRADIENT, LAYER_BOUND, TERM_FACTOR, TERM_GRADIENT
from mim4dd_pl.diagnostics.base import Symptom, Values, lasting

DEAD = 0.01
"""Share of its ceiling up to which a bound says nothing: zero nats, and what a random batch scatters about it."""

SATURATED = 0.98
"""Share of its ceiling from which a bound has nothing left to gain."""

ALONE = 0.95
"""Share of the pixel gradient beyond which the other term no longer counts."""


def bounds_of_ceiling(now: Values) -> list[float]:
    """The bound of each layer as a share of the ceiling; none where the bound is void."""
    bounds = [value for name, value in now.items() if name.startswith(LAYER_BOUND)]
    return [bound / now[CEILING] for bound in bounds] if now[CEILING] > 0 else []


def term_share(now: Values) -> float | None:
    """The information term's share of the lengths of both pixel gradients, in [0, 1]; None if one of them is off."""
    host, term = now[HOST_GRADIENT], now[TERM_FACTOR] * now[TERM_GRADIENT]
    return term / (host + term) if host > 0 and term > 0 else None


class DeadCritic(Symptom):
    """The highest bound of a layer, as a share of the ceiling."""

    name = "dead_critic"
    reads = (CEILING,)
    sentence = (
        "the critic is dead: no layer's information bound rises above {value:.1%} of its ceiling. It cannot tell pairs "
        "of one class from others, so its gradient is noise. Raise model.information.init_args.lr, lower the critic's "
        "temperature, or set model.information.init_args.networks to shared."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return max(bounds_of_ceiling(now), default=None)

    def fires(self, course: Sequence[float], window: int) -> bool:
        return lasting(course, window, lambda share: share <= DEAD)


class SaturatedCritic(Symptom):
    """The lowest bound of a layer, as a share of the ceiling."""

    name = "saturated_critic"
    reads = (CEILING,)
    sentence = (
        "the critic is saturated: every layer's information bound is at {value:.1%} of its ceiling or above. It has "
        "nothing left to teach. Raise the critic's temperature, lower model.information.init_args.lr, or leave the "
        "term out (model.information null)."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return min(bounds_of_ceiling(now), default=None)

    def fires(self, course: Sequence[float], window: int) -> bool:
        return lasting(course, window, lambda share: share >= SATURATED)


class DrownedHost(Symptom):
    """The information term's share of the pixel gradient."""

    name = "drowned_host"
    reads = (HOST_GRADIENT, TERM_GRADIENT, TERM_FACTOR)
    sentence = (
        "the information term drowns the host: it is {value:.1%} of the pixel gradient. The images follow the critic "
        "and forget the experts. Set model.information.init_args.balance to gradient, or lower "
        "model.information.init_args.weight."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        return term_share(now)

    def fires(self, course: Sequence[float], window: int) -> bool:
        return len(course) >= window and sum(course[-window:]) / window > ALONE


class UnheardTerm(DrownedHost):
    """The host's share of the pixel gradient."""

    name = "unheard_term"
    sentence = (
        "the information term is not heard: the host is {value:.1%} of the pixel gradient. The term costs its time and "
        "changes nothing. Raise model.information.init_args.weight, or leave the term out (model.information null)."
    )

    def measure(self, now: Values, start: Values) -> float | None:
        share = term_share(now)
        return None if share is None else 1 - share
