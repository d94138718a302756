"""Which curves are worth a small drawing, and which of them share one."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from mim4dd_pl.basics import names
from mim4dd_pl.report.curves import Curve

MOST_DRAWN = 300
"""Points of a line: more than a small drawing has pixels for."""

_Curves = Mapping[str, Curve]  # by the name in the log
_Lines = dict[str, Curve | None]  # by label, the same for all runs


class Line(NamedTuple):
    """A curve as it is drawn."""

    run: int  # decides the colour
    kind: int  # number of the label in its panel; decides the dashes
    label: str
    curve: Curve  # smoothed
    raw: Curve | None  # as it was logged, where that differs


class Panel(NamedTuple):
    """Lines with axes in common."""

    title: str  # what the vertical axis shows
    caption: str
    lines: list[Line]
    logarithmic: bool


def panels(runs: Sequence[_Curves]) -> list[Panel]:
    """Every panel that any of the runs has a curve for."""
    found = [
        Panel(title, caption, _lines(runs, choose), logarithmic=choose is _gradients)
        for title, (caption, choose) in _PANELS.items()
    ]
    return [panel for panel in found if panel.lines]


def smoothed(curve: Curve) -> Curve:
    """Running median over a twenty-fifth of the curve, which single segments do not move."""
    half = len(curve.values) // 50
    return curve._replace(
        values=[median(curve.values[max(0, i - half) : i + half + 1]) for i in range(len(curve.values))]
    )


def thinned(curve: Curve) -> Curve:
    """Every so many points, the last one among them."""
    stride = -(-len(curve.steps) // MOST_DRAWN)
    first = (len(curve.steps) - 1) % stride if curve.steps else 0
    spread = None if curve.spread is None else curve.spread[first::stride]
    return Curve(curve.steps[first::stride], curve.values[first::stride], spread)


def _lines(runs: Sequence[_Curves], choose: Callable[[_Curves], _Lines]) -> list[Line]:
    """What ``choose`` finds in each run, smoothed unless the curve has a spread of its own."""
    chosen = [{label: curve for label, curve in choose(run).items() if curve is not None} for run in runs]
    kinds = list(dict.fromkeys(label for curves in chosen for label in curves))
    lines = []
    for run, curves in enumerate(chosen):
        for label, curve in curves.items():
            smooth = smoothed(curve) if curve.spread is None else curve
            raw = None if smooth == curve else thinned(curve)
            lines.append(Line(run, kinds.index(label), label, thinned(smooth), raw))
    return lines


def _single(label: str, name: str) -> Callable[[_Curves], _Lines]:
    return lambda curves: {label: curves.get(name)}


def _accuracy(curves: _Curves) -> _Lines:
    accuracy, std = curves.get(names.VALIDATION_ACCURACY), curves.get(names.VALIDATION_STD)
    if accuracy is not None and std is not None and accuracy.steps == std.steps:
        accuracy = accuracy._replace(spread=std.values)
    return {"distilled": accuracy}


def _gradients(curves: _Curves) -> _Lines:
    """The host's and, times its factor, the information term's."""
    term, factor, entering = curves.get(names.TERM_GRADIENT), curves.get(names.TERM_FACTOR), None
    if term is not None and factor is not None and term.steps == factor.steps:
        entering = term._replace(values=[a * b for a, b in zip(term.values, factor.values, strict=True)])
    return {"host": _positive(curves.get(names.HOST_GRADIENT)), "information": _positive(entering)}


def _positive(curve: Curve | None) -> Curve | None:
    """Without zeros, which a logarithmic axis cannot show; None where nothing is left."""
    pairs = [] if curve is None else zip(curve.steps, curve.values, strict=True)
    kept = [(step, value) for step, value in pairs if value > 0]
    return Curve(*map(list, zip(*kept, strict=True))) if kept else None


def _bounds(curves: _Curves) -> _Lines:
    numbers = sorted(int(name.removeprefix(names.LAYER_BOUND)) for name in curves if name.startswith(names.LAYER_BOUND))
    layers = {f"layer {number}": curves.get(f"{names.LAYER_BOUND}{number}") for number in numbers}
    return {**layers, "logits": curves.get(names.LOGITS_BOUND), "ceiling": curves.get(names.CEILING)}


_PANELS: dict[str, tuple[str, Callable[[_Curves], _Lines]]] = {
    "matching loss": (
        "How far a student of the learned images ends from where it should be; for trajectories, 1 is a student that "
        "has not moved.",
        _single("matching loss", names.MATCHING_LOSS),
    ),
    "validation accuracy": ("Fresh students of the learned images; bars are one std over students.", _accuracy),
    "student learning rate": (
        "alpha, learned with the images.",
        _single("student learning rate", names.STUDENT_LR),
    ),
    "pixel gradient": (
        "Lengths of what the two terms of the objective do to the pixels, as they enter the step.",
        _gradients,
    ),
    "information, nats": ("The bound of each layer, and the largest value that it can take.", _bounds),
}
"""How to read each panel and what it shows, by title."""
