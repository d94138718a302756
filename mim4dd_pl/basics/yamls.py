"""YAML files of keys and values as users write them: recipes, overlays, sweeps."""

import math
import os
from pathlib import Path
from typing import Any

import yaml

from mim4dd_pl.basics.errors import UserError

_MOST_BYTES, _MOST_VALUES = 2**16, 10**5


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
    if not os.path.isfile(path):
        raise UserError(f"No recipe {path}: -c takes a YAML file, e.g. configs/distill/digits.yaml.")
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {_MOST_BYTES:,}")
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _UniqueKeys)
        values = _values(content, {})
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    except Exception as error:  # PyYAML raises whatever a value that is not what its tag says leads to
        raise UserError(f"{path} is no YAML: {error!s:.300}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found}, expected keys and values.")
    if values == math.inf:
        raise UserError(f"{path} contains itself: an alias points to one of its own parents.")
    if values > _MOST_VALUES:
        raise UserError(f"{path} holds more than {_MOST_VALUES:,} values: its aliases multiply.")
    return content


def _values(content: object, known: dict[int, float]) -> float:
    """How many values there are with every alias written out; infinite if one contains itself."""
    if not isinstance(content, dict | list):
        if isinstance(content, int) and content.bit_length() > 64:
            raise ValueError("a number is too large")
        return 1
    if id(content) not in known:
        known[id(content)] = math.inf  # as long as it is being counted
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(content)]


def dotted(content: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested keys and values under dotted keys."""
    leaves: dict[str, Any] = {}
    for name, part in content.items():
        leaves.update(dotted(part, f"{prefix}{name}.") if isinstance(part, dict) else {f"{prefix}{name}": part})
    return leaves
