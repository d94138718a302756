"""Rooms: imports point down, and what a room brings along when it is imported."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mim4dd_pl"
ROOMS = (
    *("basics", "networks", "data", "information", "engine", "stored", "objectives", "population"),
    *("modules", "callbacks", "diagnostics", "analysis", "sweep", "report", "app"),
)
"""From the ground up."""

LIGHTNING = ("lightning", "torchmetrics", "jsonargparse", "tensorboard", "matplotlib", "sklearn", "scipy")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def test_every_folder_is_a_room_and_nothing_else_lies_at_the_top() -> None:
    assert {room_of(path) for path in FILES} == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_come_from_lower_rooms_or_the_own_one(path: Path) -> None:
    own = ROOMS.index(room_of(path))
    for node in ast.walk(ast.parse(path.read_text())):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if module.startswith("mim4dd_pl."):
            assert ROOMS.index(module.split(".")[1]) <= own, module


def test_a_room_re_exports_nothing() -> None:
    for room in ROOMS:
        body = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
        assert [type(node) for node in body] == [ast.Expr], room


def imported_with(room: str) -> set[str]:
    """Top-level packages in memory after every file of a room is imported in a fresh process."""
    files = [f"mim4dd_pl.{room}.{path.stem}" for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]
    code = f"import sys\nfor file in {files}: __import__(file)\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(found.stdout.split())


@pytest.mark.parametrize("room", ROOMS[: ROOMS.index("modules")])
def test_rooms_below_the_modules_bring_no_lightning_and_nothing_that_draws(room: str) -> None:
    assert imported_with(room).isdisjoint(LIGHTNING)


@pytest.mark.parametrize("room", ["modules", "callbacks", "diagnostics"])
def test_rooms_below_the_analysis_do_not_import_scikit_learn(room: str) -> None:
    """Scipy and matplotlib come with Lightning's torchmetrics from the modules on."""
    assert "sklearn" not in imported_with(room)


KEYS = re.compile(r"(?<![\w/])(model|data|trainer)\.(\w+\b(?!\()|\{)|(?<!\S)--[a-z]|\(--[a-z]")
"""A key of a recipe or an option of the command line."""


def spoken(tree: ast.AST) -> list[str]:
    """Every string but docstrings, f-strings with {} for their values."""
    docs = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    strings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs | parts:
            strings.append(node.value)
    return strings


def test_keys_are_found_in_strings_and_in_f_strings() -> None:
    code = '"""Of model.x."""\nf"model.{name} is"\nraise E(f"a{b}" " data.zca")\nprint("see --help")\nopen("model.py")'
    found = [text for text in spoken(ast.parse(code)) if KEYS.search(text)]
    assert found == ["model.{} is", "a{} data.zca", "see --help", "model.py"]


LIBRARY = [path for path in FILES if room_of(path) in ROOMS[: ROOMS.index("modules")]]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_classes_speak_of_their_own_parameters_and_not_of_keys(path: Path) -> None:
    if path.name != "terminal.py":  # the voice of the program
        assert not [text for text in spoken(ast.parse(path.read_text())) if KEYS.search(text)]
