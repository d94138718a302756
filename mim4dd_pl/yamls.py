"""YAML files of keys and values as users write them: recipes, overlays, sweeps."""

import json
from pathlib import Path
from typing import Any

import yaml

from mim4dd_pl.errors import UserError


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; a recipe must not hold two truths."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            where = f"{key.start_mark.name}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{where}: a key must be a word.")
            if key.value in seen:
                raise UserError(f"{where}: {key.value} is set twice.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[Any, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: If it is missing, no YAML, empty, contains itself or sets a key twice.
    """
    if not path.is_file():
        raise UserError(f"No recipe {path}: -c takes a YAML file, e.g. configs/distill/digits.yaml.")
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {content!r:.40}, expected keys and values.")
    try:
        json.dumps(content, default=str)
    except ValueError:
        raise UserError(f"{path} contains itself: an alias points to one of its own parents.") from None
    return content


def dotted(content: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested keys and values under dotted keys."""
    leaves: dict[str, Any] = {}
    for name, part in content.items():
        leaves.update(dotted(part, f"{prefix}{name}.") if isinstance(part, dict) else {f"{prefix}{name}": part})
    return leaves
