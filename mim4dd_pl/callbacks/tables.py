"""Accuracies as a table on the terminal, and as JSON and CSV beside a run."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mim4dd_pl.basics.files import write_text
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.population.scores import Score


def print_scores(scores: Sequence[Score], ranking: dict[str, float]) -> None:
    """A row for each score; the network is named where there are several, the learning rate where it was chosen."""
    networks, lrs = ({getattr(score, name) for score in scores} for name in ("network", "lr"))
    # By the name of the class, where that tells them apart.
    short = {name: name.partition("(")[0] for name in networks}
    short = short if len(set(short.values())) == len(networks) else {name: name for name in networks}
    table = Table(title="Test accuracy of fresh students")
    table.add_column("trained on")
    if len(networks) > 1:
        table.add_column("network")
    table.add_column("images", justify="right")
    if len(lrs) > 1:
        table.add_column("lr", justify="right")
    table.add_column("accuracy, mean +- std (students)", justify="right")
    for score in scores:
        network = [short[score.network]] if len(networks) > 1 else []
        lr = [f"{score.lr:.3g}"] if len(lrs) > 1 else []
        accuracy = f"{100 * score.mean:.1f} +- {100 * score.std:.1f} % ({len(score.confusion)})"
        table.add_row(score.trained_on, *network, f"{score.images:,}", *lr, accuracy)
    console = Console()
    console.print(table)
    if ranking:
        values = ", ".join(f"{name} {value:.3f}" for name, value in ranking.items())
        console.print(f"{'DD-Ranking':<12} {values}", highlight=False)


def print_lines(lines: dict[str, object]) -> None:
    """Names and values, aligned, without breaking paths."""
    console = Console()
    for name, value in lines.items():
        console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True)


def write_scores(run: RunFolder, scores: Sequence[Score], about: dict[str, Any]) -> None:
    """``results.json`` with everything, ``results.csv`` with a row for each score."""
    rows = [score.as_dict() for score in scores]
    write_text(run.results, json.dumps({"test": rows, **about}, indent=2) + "\n")
    text = io.StringIO()
    columns = ("trained_on", "network", "images", "lr", "students", "accuracy", "std")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.table, text.getvalue())
