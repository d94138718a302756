"""The figures of an analysis; each is an object of its own, without pyplot and its global state."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten colours that differ for the colour-blind too (Petroff 2021, arXiv:2107.02270)."""


def heat_maps(values: dict[str, Tensor], rows: str) -> Figure:
    """CKA of layers, one panel for each title; ``rows`` says whose layers the rows are. Each of shape (K, K)."""
    count = max(max(panel.shape) for panel in values.values())
    side = max(3.0, 0.6 * count)
    figure = Figure(figsize=(len(values) * side + 1.8, side + 0.8), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (title, panel) in zip(panels, values.items(), strict=True):
        shown = axes.imshow(panel.numpy(), vmin=0, vmax=1, cmap="cividis")
        for row, line in enumerate(panel.tolist()):
            for column, value in enumerate(line):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="k" if value > 0.5 else "w")
        axes.set_xticks(range(panel.shape[1]), layer_names(panel.shape[1]), rotation=90 if count > 4 else 0)
        axes.set_yticks(range(panel.shape[0]), layer_names(panel.shape[0]))
        axes.set_xlabel(title)
    panels[0].set_ylabel(rows)
    figure.colorbar(shown, ax=list(panels), label="CKA on held-out images")
    return figure


def planes(points: Sequence[Tensor], labels: Tensor, learned: Tensor, classes: Sequence[str]) -> Figure:
    """Real images as dots and learned ones as large diamonds, a panel for each layer.

    Points are of shape (N, 2), for each layer; labels (N,) number the classes, ten at most; ``learned`` is (N,), bool.
    """
    columns = min(len(points), 3)
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(4 * columns + 1.4, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(points) :]:
        axes.set_axis_off()
    for axes, name, plane in zip(panels, layer_names(len(points)), points, strict=False):
        for label, class_name in enumerate(classes):
            dots, diamonds = ((labels == label) & (learned == which) for which in (False, True))
            axes.scatter(*plane[dots].T.numpy(), s=8, color=COLOURS[label], alpha=0.6, linewidths=0)
            where = plane[diamonds].T.numpy()
            axes.scatter(*where, s=70, marker="D", color=COLOURS[label], edgecolors="k", label=class_name, zorder=3)
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", title="class", frameon=False)
    return figure


def neighbour_rows(rows: dict[str, Tensor], classes: Sequence[str], ratios: dict[str, Tensor]) -> Figure:
    """Learned images above real ones: a row for each title, a column for each learned image.

    Rows are pixels in [0, 1], shape (n, c, h, w); n names of classes stand above the columns, ratios (n,) below a row.
    """
    figure = Figure(figsize=(len(classes) + 1.4, 1.35 * len(rows) + 0.3), layout="constrained")
    # One axes for a row: thirty of them take seconds.
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (title, images) in zip(panels, rows.items(), strict=True):
        width = images.shape[3]
        gap = max(1, width // 12)
        strip = np.concatenate(list(pad(images, [0, gap], value=1).movedim(1, -1).numpy()), axis=1)[:, :-gap]
        axes.imshow(strip if strip.shape[-1] == 3 else strip[..., 0], vmin=0, vmax=1, cmap="gray")
        middles = (width - 1) / 2 + (width + gap) * np.arange(len(classes))
        axes.set_xticks(middles, [f"{ratio:.2f}" for ratio in ratios.get(title, [])] or [""] * len(classes))
        axes.set_yticks([(images.shape[2] - 1) / 2], [title])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for middle, name in zip(middles, classes, strict=True):
        where = {"xy": (middle, 1), "xycoords": ("data", "axes fraction"), "xytext": (0, 4)}
        panels[0].annotate(fill(name, 12), **where, textcoords="offset points", ha="center", fontsize=9)
    return figure


def layer_names(count: int) -> list[str]:
    """layer1 .. layerK."""
    return [f"layer{number}" for number in range(1, count + 1)]
