"""The command: which runs, and where the page goes."""

from collections.abc import Sequence
from pathlib import Path

import mim4dd_pl
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.files import write_text
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.basics.terminal import OneLineParser
from mim4dd_pl.report.page import html_page, markdown_page
from mim4dd_pl.report.runs import read_run


def report(args: Sequence[str]) -> int:
    """Run the command on a line without ``mim4dd report``; returns the exit code.

    Raises:
        UserError: If the arguments are wrong.
        StoredFileError: If a folder is no run or holds a damaged file, or the page cannot be written.
    """
    parser = OneLineParser(
        prog="mim4dd report",
        description="One page about one or several runs: accuracy beside its controls, curves, images, diagnostics, "
        "recipe. It needs no network and no other file. An unfinished run is shown as far as it went.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as checkpoints/digits/version_0")
    parser.add_argument("--out", metavar="FILE.html", help="where the page goes; report.html in the first run's folder")
    text = "print tables and diagnostics instead, without pictures"
    parser.add_argument("--markdown", action="store_true", help=text)
    given = parser.parse_args(args)
    if given.markdown and given.out is not None:
        raise UserError("--markdown prints and --out writes a page: leave one of them out.")
    runs = [read_run(Path(folder)) for folder in given.runs]
    if given.markdown:
        print(markdown_page(runs))
        return 0
    out = RunFolder(Path(given.runs[0])).report if given.out is None else Path(given.out)
    write_text(out, html_page(runs, f"mim4dd_pl {mim4dd_pl.__version__}"))
    print(f"report       {out}")
    return 0
