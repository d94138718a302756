"""The user's key of a setting that a class refuses: classes speak of their own parameters, users set dotted keys."""

import pkgutil
import re
import traceback
from collections.abc import Iterator
from inspect import signature
from types import FrameType
from typing import Any, NamedTuple

from jsonargparse import Namespace

from mim4dd_pl.basics.errors import UserError

_WORD = re.compile(r"^[a-z][\w.]*\w|(?<![\w./])[a-z]+_\w+|(?<=\()[a-z]\w*(?=\))")
"""What may be a parameter: the first word of a message, one with an underscore, one alone in parentheses."""


class _Place(NamedTuple):
    """The settings of one object, by their key without ``init_args``, and the class if they name one."""

    key: str
    class_path: str | None
    settings: Namespace


def in_keys(error: BaseException, config: Namespace) -> str:
    """The message of ``error``, in which the parameters of a class have become keys of ``config``.

    The class is that of the innermost object whose code was running and that ``config`` describes. A message that
    names no parameter begins with the key of that object, if ``error`` is no UserError.

    Args:
        error: Raised while what ``config`` describes was built or checked, perhaps wrapped by the parser.
        config: Of a subcommand.
    """
    while error.__cause__ is not None and _frames(error)[-1].f_globals["__name__"].startswith("jsonargparse"):
        error = error.__cause__
    message = str(error)
    if message.startswith(tuple(f"{key}." for key in vars(config))):
        return message
    places = list(_places("", config))
    for frame in reversed(_frames(error)):
        if found := [place for place in places if _describes(place, frame.f_locals.get("self"))]:
            values = {**getattr(frame.f_locals["self"], "__dict__", {}), **frame.f_locals}
            found = [place for place in found if _holds(place, values)] or found
            return _named(message, found, named=isinstance(error, UserError))
    return message


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _places(key: str, content: Any) -> Iterator[_Place]:
    """Every object that ``content`` describes; in a list they go by the names of their classes."""
    if isinstance(content, list):
        for item in content:
            if isinstance(item, Namespace) and "class_path" in item:
                yield from _places(f"{key}.{item.class_path.rpartition('.')[2]}", item)
    elif isinstance(content, Namespace):
        class_path = content.get("class_path")
        settings = content if class_path is None else content.get("init_args") or Namespace()  # type: ignore[no-untyped-call]
        yield _Place(key, class_path, settings)
        for name, value in vars(settings).items():
            yield from _places(f"{key}.{name}".removeprefix("."), value)


def _describes(place: _Place, built: object) -> bool:
    """Whether ``built`` is of the class of ``place``; where none is named, its parameters tell."""
    if place.class_path is not None:
        return pkgutil.resolve_name(place.class_path) is type(built)
    return signature(type(built).__init__).parameters.keys() == {"self"} | vars(place.settings).keys()


def _holds(place: _Place, values: dict[str, Any]) -> bool:
    plain = {name: value for name, value in vars(place.settings).items() if not isinstance(value, Namespace)}
    return all(str(values[name]) == str(value) for name, value in plain.items() if name in values)


def _named(message: str, places: list[_Place], named: bool) -> str:
    """``message`` with keys for parameters, of all ``places`` if there are several; ``named`` if none is fine."""

    def key(word: re.Match[str]) -> str:
        known = word[0] in places[0].settings
        return " and ".join(f"{place.key}.{word[0]}" for place in places) if known else word[0]

    text = _WORD.sub(key, message)
    return text if named or text != message else f"{' and '.join(place.key for place in places)}: {message}"
