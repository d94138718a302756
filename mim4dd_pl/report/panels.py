"""Which curves are worth a small drawing, and which of them share one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mim4dd_pl.basics import names
from mim4dd_pl.report.curves import Curve

MOST_DRAWN = 300
"""Points of a line: more than a small drawing has pixels for."""


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn.

    Args:
        run: Number of the run, which decides the colour.
        kind: Number among the lines of a run in this panel, which decides the dashes.
        label: What it is, the same for all runs.
        curve: Smoothed.
        raw: As it was logged, where that differs.
        spread: A std at each point, if there is one.
    """

    run: int
    kind: int
    label: str
    curve: Curve
    raw: Curve | None = None
    spread: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """Lines with axes in common.

    Args:
        title: What the vertical axis shows.
        caption: How to read it.
        lines: In drawing order.
        logarithmic: Whether the vertical axis is.
    """

    title: str
    caption: str
    lines: list[Line]
    logarithmic: bool = False


def panels(runs: Sequence[Mapping[str, Curve]]) -> list[Panel]:
    """Every panel that any of the runs has a curve for."""
    found = [
        Panel(
            "matching loss",
            "How far a student of the learned images ends from where it should be; for trajectories, 1 is a student "
            "that has not moved.",
            _lines(runs, {"matching loss": names.MATCHING_LOSS}),
        ),
        Panel(
            "validation accuracy",
            "Fresh students of the learned images; bars are one std over students.",
            _accuracies(runs),
        ),
        Panel(
            "student learning rate",
            "alpha, learned with the images.",
            _lines(runs, {"student learning rate": names.STUDENT_LR}),
        ),
        Panel(
            "pixel gradient",
            "Lengths of what the two terms of the objective do to the pixels, as they enter the step.",
            _gradients(runs),
            logarithmic=True,
        ),
        Panel(
            "information, nats",
            "The bound of each layer, and the largest value that it can take.",
            _lines(runs, _bounds(runs)),
        ),
    ]
    return [panel for panel in found if panel.lines]


def smoothed(curve: Curve) -> Curve:
    """Running median over a twenty-fifth of the curve, which single segments do not move."""
    half = len(curve.values) // 50
    values = [median(curve.values[max(0, i - half) : i + half + 1]) for i in range(len(curve.values))]
    return Curve(curve.steps, values)


def thinned(curve: Curve) -> Curve:
    """Every so many points, the last one among them."""
    stride = -(-len(curve.steps) // MOST_DRAWN)
    first = (len(curve.steps) - 1) % stride if curve.steps else 0
    return Curve(curve.steps[first::stride], curve.values[first::stride])


def _line(run: int, kind: int, label: str, curve: Curve) -> Line:
    smooth = smoothed(curve)
    return Line(run, kind, label, thinned(smooth), None if smooth == curve else thinned(curve))


def _lines(runs: Sequence[Mapping[str, Curve]], wanted: Mapping[str, str]) -> list[Line]:
    """The curve ``wanted[label]`` of each run that has it."""
    return [
        _line(run, kind, label, curves[name])
        for run, curves in enumerate(runs)
        for kind, (label, name) in enumerate(wanted.items())
        if name in curves
    ]


def _accuracies(runs: Sequence[Mapping[str, Curve]]) -> list[Line]:
    lines = []
    for run, curves in enumerate(runs):
        if (accuracy := curves.get(names.VALIDATION_ACCURACY)) is not None:
            std = curves.get(names.VALIDATION_STD)
            spread = std.values if std is not None and std.steps == accuracy.steps else None
            lines.append(Line(run, 0, "distilled", accuracy, spread=spread))
    return lines


def _gradients(runs: Sequence[Mapping[str, Curve]]) -> list[Line]:
    """The host's and, times its factor, the information term's; zeros are left out, as the axis is logarithmic."""
    lines = []
    for run, curves in enumerate(runs):
        kinds = {"host": curves.get(names.HOST_GRADIENT)}
        term, factor = curves.get(names.TERM_GRADIENT), curves.get(names.TERM_FACTOR)
        if term is not None and factor is not None and term.steps == factor.steps:
            values = [length * times for length, times in zip(term.values, factor.values, strict=True)]
            kinds["information"] = Curve(term.steps, values)
        for kind, (label, curve) in enumerate(kinds.items()):
            if curve is not None and any(value > 0 for value in curve.values):
                positive = [(step, value) for step, value in zip(*curve, strict=True) if value > 0]
                steps, lengths = zip(*positive, strict=True)
                lines.append(_line(run, kind, label, Curve(list(steps), list(lengths))))
    return lines


def _bounds(runs: Sequence[Mapping[str, Curve]]) -> dict[str, str]:
    found = {name for curves in runs for name in curves if name.startswith(names.LAYER_BOUND)}
    numbers = sorted(int(name.removeprefix(names.LAYER_BOUND)) for name in found)
    layers = {f"layer {number}": f"{names.LAYER_BOUND}{number}" for number in numbers}
    return {**layers, "ceiling": names.CEILING}
