"""Sections as one file: an HTML page that needs nothing but itself, or Markdown."""

import html
from collections.abc import Sequence

from mim4dd_pl.report.parts import Section

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --quiet: #666; --accent: #2f74b5; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; --accent: #7db4e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: Canvas; color: CanvasText;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; color: var(--quiet); }
p, ul { max-width: 46rem; margin: .5rem 0; }
li { margin: .4rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th[scope=row] { font-weight: normal; }
.numbers th, .numbers td { white-space: nowrap; overflow-wrap: normal; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; padding: .3rem 0 .3rem .8rem; }
.prose th[scope=row] { color: var(--quiet); white-space: nowrap; }
.prose thead { display: none; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
figure { margin: .8rem 0; }
.drawn { max-width: 28rem; margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .85rem; color: var(--quiet); margin-top: .3rem; max-width: 46rem; }
.key { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.key span { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
summary { cursor: pointer; color: var(--accent); padding: .3rem 0; }
pre { overflow-x: auto; padding: .8rem; background: var(--soft); font-size: .8rem; line-height: 1.4; }
footer { margin-top: 3rem; font-size: .8rem; color: var(--quiet); }
"""
# Nothing is fetched and nothing runs, whatever a name on the page holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(sections: Sequence[Section], made_by: str) -> str:
    """One page; its title is that of the first section.

    Args:
        sections: What it says.
        made_by: Program and version.
    """
    body = "\n".join(section.html() for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(sections[0].title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
<footer>{html.escape(made_by)}</footer>
</body>
</html>
"""


def markdown_page(sections: Sequence[Section]) -> str:
    """The same without pictures."""
    return "\n\n".join(text for section in sections if (text := section.markdown()))
