"""Recipes that come with the package, by name: ``digits``, ``experts/cifar10``, ``with/mutual_information``."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import mim4dd_pl
from mim4dd_pl.basics.errors import UserError

RECIPES = Path(mim4dd_pl.__file__).parent / "configs"


def recipe_path(name: str) -> str:
    """The file of a recipe: ``name`` itself if it is one or is written like one, else what comes under this name.

    Recipes of ``distill/`` need no folder in front.

    Raises:
        UserError: If there is none, with the names that come close.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).exists():
        return name
    for folder in (RECIPES, RECIPES / "distill"):
        if (path := folder / f"{name}.yaml").is_file():
            return str(path)
    known = {path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.yaml")}
    known |= {path.stem for path in RECIPES.glob("distill/*.yaml")}
    close = get_close_matches(name, sorted(known), 3)
    raise UserError(
        f"No recipe {name}: {'did you mean ' + ' or '.join(close) + '?' if close else 'give a .yaml file.'}"
    )


def with_paths(arguments: Sequence[str]) -> list[str]:
    """A command line whose recipes, after ``-c`` or ``--config``, are files: ``--config=FILE``."""
    found: list[str] = []
    for argument in arguments:
        if found[-1:] in (["-c"], ["--config"]):
            found[-1] = f"--config={recipe_path(argument)}"
        elif argument.startswith("--config="):
            found.append(f"--config={recipe_path(argument.removeprefix('--config='))}")
        else:
            found.append(argument)
    return found
