"""The picture of a sweep: accuracies with their seeds, and paired differences with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from mim4dd_pl.basics.files import replacing
from mim4dd_pl.population.comparison import sample_std
from mim4dd_pl.sweep.table import Row


def write_figure(target: Path, title: str, rows: Sequence[Row]) -> None:
    """Two panels with a line for each variant, in percent and points; one without a finished seed stays empty."""
    from matplotlib.figure import Figure  # slow to import, and needed here only

    figure = Figure(figsize=(9.0, 1.4 + 0.4 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for line, row in enumerate(rows):
        if row.accuracies:
            seeds = [100 * accuracy for accuracy in row.accuracies]
            left.plot(seeds, [line + 0.2] * len(seeds), ".", color="tab:gray", markersize=5)
            left.errorbar(fmean(seeds), line, xerr=sample_std(seeds), fmt="o", color="tab:blue", capsize=3)
        if (found := row.difference) is not None:
            reach = None if found.high is None else 100 * (found.high - found.mean)
            right.errorbar(100 * found.mean, line, xerr=reach, fmt="s", color="tab:orange", capsize=3)
    references = {row.against for row in rows if row.against is not None}
    right.axvline(0.0, color="black", linewidth=0.8)
    left.set_yticks(range(len(rows)), [row.variant for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    left.set_title(f"{title}: mean, std and seeds", fontsize=10)
    left.set_xlabel("test accuracy, %")
    right.set_title("paired difference, 95 % interval", fontsize=10)
    right.set_xlabel(f"points against {references.pop()}" if len(references) == 1 else "points against its reference")
    for panel in (left, right):
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    with replacing(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
