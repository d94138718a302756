"""What a class refuses is said with the key that the user set."""

from dataclasses import dataclass

import pytest
from jsonargparse import Namespace, dict_to_namespace

from mim4dd_pl.app.keys import in_keys
from mim4dd_pl.basics.errors import DataError


class Part:
    def __init__(self, size: int, most_turns: int = 1) -> None:
        if size == 0:
            raise ValueError("size must be at least 1, got 0.")
        if size > most_turns:
            raise ValueError(f"size must be at most most_turns, got {size} and {most_turns}.")
        if size == 1:
            raise ValueError("Parts of one do not exist.")

    def load(self) -> None:
        raise DataError("size.npz is missing (size): set most_turns, not turns.")


@dataclass
class Plan:
    steps: int
    lr: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}.")


class Pixels:
    def __init__(self, size: int) -> None:
        raise ValueError(f"size must be even, got {size}.")


class Whole:
    """Builds something for itself, of which no recipe speaks."""

    def __init__(self, size: int, part: Part | None = None) -> None:
        Pixels(size)


def settings(kind: type, **settings: object) -> dict[str, object]:
    return {"class_path": f"{__name__}.{kind.__name__}", "init_args": settings}


CONFIG: Namespace = dict_to_namespace(
    {
        "model": settings(Whole, size=3, part=settings(Part, size=0, most_turns=1)),
        "first": {"steps": 1, "lr": 0.0},
        "second": {"steps": 2, "lr": 0.0},
        "lists": [settings(Part, size=5, most_turns=4), {"steps": 1, "lr": 0.0}],
    }
)


def said(build: object, *arguments: object, **settings: object) -> str:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - any
        build(*arguments, **settings)  # type: ignore[operator]
    return in_keys(raised.value, CONFIG)


def test_the_class_and_its_values_decide_which_key_it_is() -> None:
    assert said(Part, 0) == "model.part.size must be at least 1, got 0."
    assert said(Part, 5, 4) == "lists.Part.size must be at most lists.Part.most_turns, got 5 and 4."
    assert said(Plan, 2, lr=0.0) == "second.lr must be positive, got 0.0."


def test_of_several_keys_all_are_named() -> None:
    both = "model.part.size and lists.Part.size must be at most model.part.most_turns and lists.Part.most_turns"
    assert said(Part, 9) == f"{both}, got 9 and 1."


def test_what_a_class_builds_for_itself_is_refused_by_the_parameter_of_that_class() -> None:
    assert said(Whole, 3) == "model.size must be even, got 3."


def test_a_message_that_names_no_parameter_begins_with_the_key_of_the_object() -> None:
    assert said(Part, 1, 4) == "model.part and lists.Part: Parts of one do not exist."


def test_files_are_no_parameters_and_errors_of_data_get_no_key_in_front() -> None:
    assert said(Part(2, 3).load) == (
        "size.npz is missing (model.part.size and lists.Part.size): set model.part.most_turns and "
        "lists.Part.most_turns, not turns."
    )


def test_what_speaks_of_keys_already_and_what_no_recipe_describes_stay_as_they_are() -> None:
    assert in_keys(ValueError("model.size must be 1"), CONFIG) == "model.size must be 1"
    assert said(int, "size") == "invalid literal for int() with base 10: 'size'"
