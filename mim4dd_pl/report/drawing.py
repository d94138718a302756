"""Panels and confusion matrices as SVG that lives inside a page: in the page's font and in its text colour."""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mim4dd_pl.report.panels import Panel

COLOURS = ("#3a86c8", "#d9792b", "#2f9e6e", "#c1518d", "#8a6fd1", "#8c7a3c")
"""Of the runs, legible on light and dark; further runs begin again."""

MOST_NAMES = 25  # classes whose names fit beside a matrix
MOST_NUMBERS = 12  # classes whose percentages fit into its cells
_INK = "#010203"  # stands for the page's text colour
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(_INKED, _INK),
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes hold what they like, also the $ that would begin a formula
}
_NO_FACTS = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_DASHES = ("-", "--", "-.", ":")


def colour(run: int) -> str:
    """Of a run."""
    return COLOURS[run % len(COLOURS)]


@rc_context(_STYLE)
def panel(shown: Panel) -> Markup:
    """A small drawing of curves over outer steps; a legend names the kinds of line, if there are several."""
    several = len({line.label for line in shown.lines}) > 1
    colours_are_runs = len({line.run for line in shown.lines}) > 1
    figure = Figure(figsize=(3.7, 2.5), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for line in shown.lines:
        paint = colour(line.run if colours_are_runs or not several else line.kind)
        if line.raw is not None:
            axes.plot(line.raw.steps, line.raw.values, color=paint, alpha=0.25, linewidth=0.7)
        axes.errorbar(
            line.curve.steps,
            line.curve.values,
            yerr=line.curve.spread,
            color=paint,
            linestyle=_DASHES[line.kind % len(_DASHES)] if colours_are_runs else "-",
            marker="o" if len(line.curve.steps) < 20 else None,
            markersize=3,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=None if line.label in named else line.label,
        )
        named.add(line.label)
    axes.set_title(shown.title, loc="left", fontsize=9)
    axes.set_xlabel("outer step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if shown.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color=_INK, alpha=0.12, linewidth=0.6)
    if several:
        legend = axes.legend(frameon=False, fontsize=7)
        for handle in legend.get_lines() if colours_are_runs else []:
            handle.set_color(_INK)
    return _svg(figure, shown.title)


@rc_context(_STYLE)
def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Rows are true classes, columns the answers, in percent of the row; of counts (C, C) and C names."""
    shares = [[100 * number / max(sum(row), 1) for number in row] for row in counts]
    figure = Figure(figsize=(4.4, 4.2), layout="constrained", dpi=200)
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.invert_yaxis()
    mesh = axes.pcolormesh(shares, cmap="viridis", vmin=0, vmax=100, rasterized=True)
    if len(classes) <= MOST_NAMES:
        names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
        centres = [label + 0.5 for label in range(len(names))]
        axes.set_xticks(centres, names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(centres, names)
    if len(classes) <= MOST_NUMBERS:
        for row, values in enumerate(shares):
            for column, share in enumerate(values):
                text, ink = f"{share:.0f}" if share >= 0.5 else "", "white" if share < 60 else "black"
                axes.text(column + 0.5, row + 0.5, text, color=ink, ha="center", va="center", fontsize=6)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    figure.colorbar(mesh, ax=axes, shrink=0.8)
    return _svg(figure, "confusion matrix")


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an element that scales with its column, named for those who do not see it."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=_NO_FACTS)
    text = buffer.getvalue()  # matplotlib has escaped what it was told to write
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else "", text)
    opening = (
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img" '
        f'aria-label="{html.escape(title)}">'
    )
    return Markup(re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', opening, text, count=1))
