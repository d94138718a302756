"""Recipes by name, from any folder."""

from pathlib import Path

import pytest

from mim4dd_pl.app.named import recipe_path, with_paths
from mim4dd_pl.basics.errors import UserError
from tests.conftest import CONFIGS


@pytest.mark.parametrize("name", ["digits", "distill/digits", "with/zca", "experts/digits", "sweeps/lambda"])
def test_a_name_is_the_packaged_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Path(recipe_path(name)).resolve()
    assert found in (CONFIGS / f"{name}.yaml", CONFIGS / "distill" / f"{name}.yaml")


def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed_everything: 1")
    assert recipe_path("digits") == "digits"
    assert recipe_path("missing.yaml") == "missing.yaml"  # refused where it is read


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UserError, match=r"No recipe digitz: did you mean digits or .*\?"):
        recipe_path("digitz")
    with pytest.raises(UserError, match=r"No recipe wholly_unlike_any: give a \.yaml file\."):
        recipe_path("wholly_unlike_any")


def test_names_are_found_behind_each_form_of_the_option() -> None:
    path = recipe_path("digits")
    given = ["fit", "-c", "digits", "--config", "digits", "--config=digits", "--model.init=noise"]
    assert with_paths(given) == ["fit", *[f"--config={path}"] * 3, "--model.init=noise"]
