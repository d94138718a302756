"""What an object is, as plain data: its class and its settings, which JSON keeps and two runs compare key by key.

The settings of an object are the arguments of its constructor, read from the attributes of the same names.
"""

import inspect
from collections.abc import Mapping
from typing import Any

YOUNG = {
    "activation": "relu",
    "sharpness_radius": 0.0,
    "lr_drops": [],
    "lr_factor": 0.1,
    "cutmix": 0.0,
    "formation": 1,
    "clamp_images": False,
    "half_precision": False,
}
"""Settings that are younger than some experts and checkpoints, and what they were before there was a choice.

A text names them only where they differ from this."""


class Identity(dict[str, Any]):
    """``{"class": name, **settings}``; of nested objects likewise.

    Args:
        name: Of the class.
        settings: Plain data.
        defaults: What settings count as that an older identity does not name.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__({"class": name, **settings})
        self.defaults = defaults


def settings_of(built: object, after: int = 0) -> dict[str, Any]:
    """The arguments that ``built`` was constructed with, but for the first ``after``.

    Raises:
        ValueError: If it does not keep one of them as an attribute.
    """
    names = list(inspect.signature(type(built)).parameters)[after:]
    if missing := [name for name in names if not hasattr(built, name)]:
        raise ValueError(
            f"{type(built).__name__} must keep its argument {missing[0]} as an attribute of this name: it is how "
            "stored experts are recognised."
        )
    return {name: getattr(built, name) for name in names}


def identity(built: object, settings: Mapping[str, Any] | None = None) -> Identity:
    """Class, settings and default settings of an object; ``settings`` for one that does not keep them as attributes."""
    parameters = inspect.signature(type(built)).parameters.values()
    defaults = {each.name: _plain(each.default) for each in parameters if each.default is not each.empty}
    return Identity(type(built).__name__, _plain(settings_of(built) if settings is None else settings), defaults)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    return identity(value)


def words(settings: Mapping[str, Any]) -> str:
    """``depth=3, width=128``; a list that stands alone has no name."""
    if len(settings) == 1 and isinstance(alone := next(iter(settings.values())), list):
        return ", ".join(map(str, alone))
    return ", ".join(f"{key}={text(value)}" for key, value in settings.items() if (key, value) not in YOUNG.items())


def text(value: Any) -> str:
    """``ConvNet(depth=3, width=128)`` for an identity, also one that was read; anything else as it prints itself."""
    if not isinstance(value, dict) or "class" not in value:
        return str(value)
    return f"{value['class']}({words({key: part for key, part in value.items() if key != 'class'})})"


def difference(found: Any, wanted: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first setting in which what was stored differs from what is wanted: its dotted name and both values.

    A setting that ``found`` does not name counts as its default.

    Args:
        found: As JSON gave it back.
        wanted: An identity, or any plain value.
        name: What both are called.
    """
    if not isinstance(wanted, Identity) or not isinstance(found, dict) or found.get("class") != wanted["class"]:
        return None if found == wanted else (name, found, wanted)
    known = {**wanted.defaults, **found}
    parts = (
        difference(known.get(key, "missing"), wanted.get(key, "missing"), f"{name}.{key}")
        for key in dict.fromkeys((*wanted, *found))
    )
    return next((part for part in parts if part is not None), None)
