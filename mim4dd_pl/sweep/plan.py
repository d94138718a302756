"""What a sweep runs: its file, or a key and its values.

A sweep file names variants, each by settings under dotted keys as on the command line::

    recipe: ../distill/digits.yaml            # paths are relative to this file
    with: ../with/mutual_information.yaml     # overlays for all
    seeds: [0, 1, 2]
    variants:
      none: {model.information: null}         # the first is what the others are compared with ...
      "0.2": {model.information.weight: 0.2}
      "0.2 soft": {with: ../with/soft_labels.yaml, model.information.weight: 0.2, against: "0.2"}    # ... or this one
      dm: {recipe: ../distill/digits_dm.yaml, against: null}    # a recipe of its own; compared with none

A path may be a list of paths.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.yamls import read_mapping


@dataclass(frozen=True)
class Variant:
    """A recipe and what is changed in it: one row of the table.

    Args:
        name: Also that of its folder.
        recipe: The recipe and its overlays, in order.
        settings: Values by dotted keys, as on the command line; they come last.
        against: Name of the variant that it is compared with; None for none.
    """

    name: str
    recipe: tuple[Path, ...]
    settings: dict[str, Any]
    against: str | None

    def arguments(self) -> list[str]:
        """Of ``mim4dd fit``."""
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.settings.items()}
        return [f"--config={path}" for path in self.recipe] + [f"--{key}={value}" for key, value in values.items()]


@dataclass(frozen=True)
class Sweep:
    """Variants x seeds.

    Args:
        name: For its folder and its figure.
        variants: In the order of the table.
        seeds: Each variant has all of them, so that differences are paired.
    """

    name: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]


def read_sweep(path: Path, overlays: Sequence[Path] = (), seeds: Sequence[int] = ()) -> Sweep:
    """The sweep of a file.

    Args:
        path: The file; the recipes in it are relative to its folder.
        overlays: For every variant, after those of the file.
        seeds: In place of those of the file, if any.

    Raises:
        UserError: If the file, or what it says, is not as it should be.
    """
    content = read_mapping(path)
    if "variants" not in content:
        raise UserError(f"{path} has no variants: give a sweep file, or a recipe with --key and --values.")
    for unknown in content.keys() - {"recipe", "with", "seeds", "variants"}:
        raise UserError(f"{path}: no key {unknown} in a sweep file; expected recipe, with, seeds, variants.")
    named = content["variants"]
    if not isinstance(named, dict) or not named:
        raise UserError(f"{path}: variants holds {named!r:.40}, expected names with their settings.")
    names = [_name(f"{path}: variants", name) for name in named]
    variants = []
    for name, settings in zip(names, named.values(), strict=True):
        where = f"{path}: variants.{name}"
        if not isinstance(settings, dict):
            raise UserError(f"{where} holds {settings!r:.40}, expected dotted keys with values, or {{}}.")
        given = dict(settings)
        recipe = _paths(path, f"{where}.recipe", given.pop("recipe", content.get("recipe", [])))
        if not recipe:
            raise UserError(f"{where} has no recipe: it needs one of its own, or the file one for all.")
        recipe += _paths(path, f"{path}: with", content.get("with", []))
        recipe += _paths(path, f"{where}.with", given.pop("with", []))
        against = given.pop("against", None if name == names[0] else names[0])
        if against is not None and (against == name or against not in names):
            raise UserError(f"{where}.against must name another variant ({', '.join(names)}), got {against!r}.")
        variants.append(Variant(name, (*recipe, *overlays), _settings(where, given), against))
    return _sweep(path.stem, variants, seeds or content.get("seeds", ()))


def grid(recipe: Sequence[Path], key: str, values: Sequence[str], seeds: Sequence[int]) -> Sweep:
    """One key with several values; each is compared with the first.

    Raises:
        UserError: If there is no value, or one is there twice.
    """
    if not values:
        raise UserError("--key needs --values, e.g. --key model.information.weight --values 0 0.2 0.4")
    names = [_name("--values", value) for value in values]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Values must differ, got {twice} twice.")
    variants = [
        Variant(name, tuple(recipe), _settings("--key", {key: name}), None if name == names[0] else names[0])
        for name in names
    ]
    return _sweep(f"{recipe[0].stem}_{key.rpartition('.')[2]}", variants, seeds)


def _sweep(name: str, variants: Sequence[Variant], seeds: Any) -> Sweep:
    if not isinstance(seeds, (list, tuple)) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"seeds must be whole numbers, at least one and none negative, e.g. 0 1 2; got {seeds}.")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must differ, got {' '.join(map(str, seeds))}.")
    for path in dict.fromkeys(path for variant in variants for path in variant.recipe):
        read_mapping(path)
    return Sweep(name, tuple(variants), tuple(seeds))


def _paths(file: Path, where: str, paths: Any) -> list[Path]:
    """One or several paths of a sweep file, seen from the working folder."""
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError(f"{where} must be a path or a list of paths, got {paths!r:.40}.")
    return [Path(os.path.normpath(file.parent / path)) for path in paths]


def _name(where: str, name: Any) -> str:
    # It becomes a folder; numbers, Booleans and null have several spellings in YAML.
    if not isinstance(name, str):
        raise UserError(f"{where}: a name is a text, put it in quotes; got {name}.")
    if not re.fullmatch(r"[\w+-][\w .,=+-]*", name) or name != name.strip():
        raise UserError(f"{where}: a name is letters, digits, spaces and . , = + - _, not first a dot; got {name!r}.")
    return name


def _settings(where: str, settings: dict[Any, Any]) -> dict[str, Any]:
    for key in settings:
        if not isinstance(key, str) or not re.fullmatch(r"\w+(\.\w+)+", key):
            raise UserError(f"{where}: a setting is a dotted key, e.g. model.information.weight, got {key}.")
        if f"{key}.".startswith("trainer.logger."):
            raise UserError(f"{where}: {key} is set by the sweep (--out): leave it out.")
    return settings
