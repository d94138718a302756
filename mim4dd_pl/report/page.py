"""Runs as one file: an HTML page that needs nothing but itself, or Markdown; both are templates of this room."""

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mim4dd_pl.report import content, drawing
from mim4dd_pl.report.panels import panels
from mim4dd_pl.report.runs import Run


def html_page(runs: Sequence[Run], made_by: str) -> str:
    """One page, on which all text is escaped; of several runs, a comparison comes first.

    ``made_by`` names program and version.
    """
    environment = _environment(autoescape=True)
    environment.globals["draw"] = drawing
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    curves = panels([run.curves for run in runs])
    return environment.get_template("page.html").render(runs=runs, panels=curves, made_by=made_by)


def markdown_page(runs: Sequence[Run]) -> str:
    """The same without pictures."""
    return _environment(finalize=_markdown).get_template("page.md").render(runs=runs).strip()


def _environment(**settings: Any) -> Environment:
    settings |= {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("mim4dd_pl.report"), **settings)
    environment.globals["say"] = content
    return environment


def _markdown(value: object) -> str:
    """Text that neither breaks a table nor becomes HTML."""
    text = " ".join(str(value).split())
    for special in "\\|<`*[":
        text = text.replace(special, f"\\{special}")
    return text
