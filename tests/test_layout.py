"""Arrows point down: the floors of docs/method.md, read from the imports."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mim4dd_pl"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def floors() -> dict[str, int]:
    """Module or folder -> floor, from the table in docs/method.md."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/method.md").read_text(), re.M)
    return {name.rstrip("/"): int(floor) for floor, names in rows for name in re.findall(r"`([^`]+)`", names)}


def floor_of(module: str) -> int:
    parts = module.removeprefix("mim4dd_pl.").split(".")
    known = floors()
    return known["/".join(parts)] if "/".join(parts) in known else known[parts[0]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_come_from_lower_floors_or_the_own_folder(path: Path) -> None:

    here = path.relative_to(PACKAGE).with_suffix("")
    own = floor_of("mim4dd_pl." + ".".join(here.parts))
    for node in ast.walk(ast.parse(path.read_text())):
        imported = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if imported.startswith("mim4dd_pl."):
            siblings = len(here.parts) > 1 and imported.split(".")[1] == here.parts[0]
            assert siblings or floor_of(imported) < own, imported


def test_lightning_appears_where_it_may() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        if re.search(r"^(import|from) lightning", path.read_text(), re.M)
    }
    assert users == {"modules", "callbacks", "data", "estimate.py", "resuming.py", "trainer.py", "cli.py"}
    assert "lightning" not in (PACKAGE / "data/catalog.py").read_text() + (PACKAGE / "data/sets.py").read_text()
