"""What other programs import: every name is there, typed, documented, and light."""

import ast
import inspect
import subprocess
import sys

import pytest

import mim4dd_pl
from tests.conftest import ROOT

NAMES = [name for name in mim4dd_pl.__all__ if name != "__version__"]


def test_checkers_of_types_see_the_names_that_python_finds() -> None:
    tree = ast.parse((ROOT / "mim4dd_pl/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"mim4dd_pl.{home}" for name, home in mim4dd_pl._HOMES.items()}
    assert sorted(NAMES) == sorted(seen) == sorted(set(dir(mim4dd_pl)) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is_and_what_it_takes(name: str) -> None:
    public = getattr(mim4dd_pl, name)
    assert public.__module__ == f"mim4dd_pl.{mim4dd_pl._HOMES[name]}"
    documented = inspect.getdoc(public) or ""
    parameters = set(inspect.signature(public).parameters)
    assert not parameters or "Args:" in documented
    assert all(f"{parameter}:" in documented for parameter in parameters), documented


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mim4dd_pl.nothing  # noqa: B018


def test_the_library_brings_torch_and_no_program_along() -> None:
    light = ", ".join(name for name in NAMES if name != "distill")
    code = f"import sys\nfrom mim4dd_pl import {light}\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"lightning", "jsonargparse", "torchmetrics", "torchvision", "kornia", "matplotlib", "sklearn", "rich"}
    assert heavy.isdisjoint(found.stdout.split())
