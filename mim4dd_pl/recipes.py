"""Recipes as users write them: what is refused before anything is built, and how it is said."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mim4dd_pl import callbacks, modules
from mim4dd_pl.data import Source
from mim4dd_pl.errors import UserError
from mim4dd_pl.information import Critic, InformationTerm
from mim4dd_pl.networks import Network
from mim4dd_pl.objectives import Objective
from mim4dd_pl.unroll import Unroll

_SHORT_NAMES: dict[str, Sequence[str]] = {
    "model": modules.__all__,
    "callbacks": callbacks.__all__,
    "source": [kind.__name__ for kind in Source.__subclasses__()],
    "network": [kind.__name__ for kind in Network.__subclasses__()],
    "objective": [kind.__name__ for kind in Objective.__subclasses__()],
    "unroll": [kind.__name__ for kind in Unroll.__subclasses__()],
    "critic": [kind.__name__ for kind in Critic.__subclasses__()],
    "information": [InformationTerm.__name__],
}
"""Classes that a recipe may name without their module, by the last word of the key."""


def check_clock(max_steps: int, interval: int | float | None) -> None:
    """The last step must be a validated one: it is what the closing table and the artefact speak of."""
    if not isinstance(interval, int) or interval < 1:
        raise UserError(
            f"trainer.val_check_interval must be a whole number of outer steps, at least 1; got {interval}."
        )
    if max_steps < 1 or max_steps % interval:
        raise UserError(
            f"trainer.max_steps must be a positive multiple of trainer.val_check_interval ({interval}), so that the "
            f"last step is evaluated; got {max_steps}."
        )


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; a recipe must not hold two truths."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise UserError(f"{key.start_mark.name}, line {key.start_mark.line + 1}: {key.value} is set twice.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_keys(recipe: Path) -> None:
    """Refuse a recipe that is missing, no YAML, empty, or sets a key twice."""
    if not recipe.is_file():
        raise UserError(f"No recipe {recipe}: -c takes a YAML file, e.g. configs/distill/digits.yaml.")
    try:
        with recipe.open(encoding="utf-8") as file:
            content = yaml.load(file, _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{recipe} holds {content!r:.40}, expected keys and values.")


def reason_of(error: BaseException) -> str:
    """What went wrong, without the list of everything else that a value might have been."""
    keys: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        error, cause = cause, cause.__cause__
        if (named := re.match(r'Parser key "([^"]+)":\s*', str(error))) and named[1] not in keys:
            keys.append(named[1])
    key = ".".join(keys)
    reason = re.sub(r'^Parser key "[^"]+":\s*', "", str(error))
    if unknown := re.match(r"Expected a dot import path string: (.*)", reason):
        known = ", ".join(_SHORT_NAMES.get(key.rpartition(".")[2], ()))
        reason = f"no class {unknown[1]}; expected {known + ', or ' if known else ''}the path of an importable class."
    return f"{key}: {reason}" if key else reason
