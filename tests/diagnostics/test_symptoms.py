"""Each symptom fires on a made-up course that shows it, and keeps silent on one that does not."""

import inspect
import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.diagnostics.readings import Values, image_distances, loss_course, window_length
from mim4dd_pl.diagnostics.symptoms import SYMPTOMS, Symptom
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.distillation import DistillationModule
from tests.conftest import randn

CEILING = math.log(10)
BY_NAME = {symptom.name: symptom for symptom in SYMPTOMS}


def first_fired(symptom: Symptom, readings: Sequence[Values], window: int = 5) -> int | None:
    """Index of the reading at which the symptom fires."""
    start: dict[str, float] = {}
    course: list[float] = []
    for number, reading in enumerate(readings):
        start = {**reading, **start}
        value = symptom.measured(reading, start)
        if value is not None:
            course.append(value)
            if symptom.fires(course, window, reading):
                return number
    return None


def of(name: str, values: Sequence[float], **others: float) -> list[Values]:
    """Readings of one name that changes and others that do not."""
    return [{name: value, **{key.replace("__", "/"): other for key, other in others.items()}} for value in values]


def bounds(*layers: Sequence[float]) -> list[Values]:
    """Readings of the bounds of layers, as shares of the ceiling."""
    return [
        {
            "train/bound_nats_ceiling": CEILING,
            **{f"train/bound_nats_layer{number}": CEILING * share for number, share in enumerate(shares, start=1)},
        }
        for shares in zip(*layers, strict=True)
    ]


def gradients(terms: Sequence[float], factor: float = 2.0) -> list[Values]:
    """Readings of a host's pixel gradient of length 1 and a term's of these."""
    return of(
        "train/image_gradient_information",
        [term / factor for term in terms],
        train__image_gradient_host=1.0,
        train__information_factor=factor,
    )


def losses(course: Sequence[float], window: int = 5, every: int = 10) -> list[Values]:
    """What readings at every tenth step say of the loss of each step."""
    ends = range(every, len(course) + 1, every)
    return [loss_course(course[max(0, end - window * every) : end], every) for end in ends]


def alphas(values: Sequence[float]) -> list[Values]:
    return of("train/student_lr", values, student_lr__floor=0.01)


def accuracies(values: Sequence[float], std: float = 0.0, random_std: float = 0.0, students: int = 4) -> list[Values]:
    """Readings of the learned images beside random ones with an accuracy of 0.7."""
    random = {"validation/accuracy_random_real": 0.7, "validation/accuracy_std_random_real": random_std}
    noise = {"validation/accuracy_std": std, "validation/students": students}
    return [{"validation/accuracy": value, **random, **noise} for value in values]


def noisy(level: float, spread: float, count: int = 100) -> list[float]:
    """Losses that scatter about a level by a factor, as those of segments do."""
    noise = randn(Stream(0).at("tests"), count)
    return [level * math.exp(spread * value) for value in noise.tolist()]


def near_pairs(spread: float, classes: int) -> tuple[Tensor, Tensor]:
    """Two images of each class, ``spread`` apart, the classes one apart."""
    rows = [[float(label), side * spread] for label in range(classes) for side in (0, 1)]
    return torch.tensor(rows), torch.arange(classes).repeat_interleave(2)


SHOWN: list[tuple[str, list[Values], int]] = [
    ("within_class_collapse", of("images/within", [4.0, 3.0, 1.9]), 2),
    ("class_overlap", [{"images/within": 4.0, "images/between": value} for value in (4.4, 4.0, 3.5)], 2),
    ("classes_meet", of("images/nearest", [4.0, 2.0, 0.9]), 2),
    ("dead_critic", bounds([0.0] * 9, [-0.2] * 9), 4),
    ("dead_critic", bounds([0.9] * 3 + [0.005] * 6), 7),
    ("dead_critic", [{"train/bound_nats_ceiling": CEILING, "train/bound_nats_logits": 0.0}] * 9, 4),
    ("saturated_critic", bounds([0.99] * 9, [1.01] * 9), 4),
    ("drowned_host", gradients([30.0] * 9), 4),
    ("unheard_term", gradients([0.01] * 9), 4),
    ("oscillation", losses([0.3, 0.9] * 30), 4),
    ("oscillation", losses(noisy(0.3, 2.0)), 4),
    ("explosion", losses([0.3] * 40 + [2.0] * 10), 4),
    ("student_lr_at_floor", alphas([0.1, 0.05, 0.01]), 2),
    ("student_lr_drift", alphas([0.1, 0.5, 1.0]), 2),
    ("student_lr_drift", alphas([0.2, 0.1, 0.02]), 2),
    ("below_random", accuracies([0.8, 0.6, 0.65]), 2),
    ("below_random", accuracies([0.8, 0.6, 0.64], std=0.04, random_std=0.03), 2),  # the margin is 0.05
]

HEALTHY: list[tuple[str, list[Values]]] = [
    ("within_class_collapse", of("images/within", [4.0, 3.0, 5.0, 9.0])),
    ("class_overlap", [{"images/within": value, "images/between": value} for value in (4.0, 2.0, 9.0)]),
    ("classes_meet", of("images/nearest", [4.0, 2.0, 9.0])),
    ("dead_critic", bounds([0.0] * 3 + [0.3] * 6, [0.0] * 9)),
    ("dead_critic", [{"train/bound_nats_ceiling": 0.0, "train/bound_nats_layer1": 0.0}] * 9),
    ("saturated_critic", bounds([0.99] * 9, [0.9] * 9)),
    ("saturated_critic", bounds([0.99, 0.99, 0.99, 0.99, 0.9] * 3)),
    ("drowned_host", gradients([0.3] * 4 + [90.0] + [0.3] * 4)),
    ("drowned_host", gradients([0.0] * 9)),
    ("unheard_term", gradients([0.3] * 9)),
    ("unheard_term", [{"train/image_gradient_host": 0.1, "train/matching_loss": 0.3}] * 9),
    ("oscillation", losses(noisy(0.3, 0.25))),
    ("oscillation", losses([0.9 * 0.8**step for step in range(100)])),
    ("oscillation", losses([0.0] * 100)),
    ("explosion", losses(noisy(0.3, 0.5))),
    ("explosion", losses([0.3] * 40 + [9.0] * 3 + [0.3] * 40)),
    ("student_lr_at_floor", alphas([0.01] * 9)),
    ("student_lr_at_floor", alphas([0.1, 0.02, 0.05])),
    ("student_lr_drift", alphas([0.1, 0.3, 0.9, 0.05])),
    ("below_random", accuracies([0.6, 0.8, 0.6, 0.9])),
    ("below_random", accuracies([0.66, 0.66, 0.66], std=0.04, random_std=0.03)),
    ("below_random", accuracies([0.6991] * 9, std=0.0013, random_std=0.003, students=5)),  # chance, as seen in a run
    ("below_random", of("validation/accuracy", [0.1, 0.1])),
]


@pytest.mark.parametrize(("name", "readings", "when"), SHOWN)
def test_a_symptom_fires_as_soon_as_it_shows(name: str, readings: list[Values], when: int) -> None:
    assert first_fired(BY_NAME[name], readings) == when


@pytest.mark.parametrize(("name", "readings"), HEALTHY)
def test_a_symptom_is_silent_on_a_healthy_course(name: str, readings: list[Values]) -> None:
    assert first_fired(BY_NAME[name], readings) is None


def test_every_symptom_has_a_name_of_its_own_and_is_provoked_and_silenced_here() -> None:
    assert len(BY_NAME) == len(SYMPTOMS)
    assert {name for name, *_ in SHOWN} == {name for name, *_ in HEALTHY} == set(BY_NAME)


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.name)
def test_a_sentence_is_one_line_with_the_number_and_a_setting_to_turn(symptom: Symptom) -> None:
    message = symptom.message(0.123456)
    assert "12" in message
    assert "{" not in message
    assert "\n" not in message
    assert "model." in message
    assert set(re.findall(r"model\.(\w+)", message)) <= set(inspect.signature(DistillationModule).parameters)
    keys = set(re.findall(r"model\.information\.init_args\.(\w+)", message))
    assert keys <= set(inspect.signature(InformationTerm).parameters)


@pytest.mark.parametrize("students", [2, 5, 20])
def test_students_fall_behind_by_more_than_two_standard_errors_of_the_difference(students: int) -> None:
    margin = 2 * math.sqrt((0.013**2 + 0.003**2) / students)
    for behind, when in ((1.01 * margin, 1), (0.99 * margin, None)):
        readings = accuracies([0.7 - behind] * 2, std=0.013, random_std=0.003, students=students)
        assert first_fired(BY_NAME["below_random"], readings) == when


def test_a_difference_of_accuracies_is_told_in_percentage_points() -> None:
    assert " -3.2 percentage points on the validation images" in BY_NAME["below_random"].message(-0.0321)


def test_distances_equal_those_of_all_pairs() -> None:
    images, labels = near_pairs(0.5, 3)
    distance = {(i, j): float((images[i] - images[j]).norm()) for i in range(6) for j in range(i)}
    within = [value for (i, j), value in distance.items() if labels[i] == labels[j]]
    between = [value for (i, j), value in distance.items() if labels[i] != labels[j]]
    found = image_distances(images, labels)
    assert found["images/within"] == pytest.approx(sum(within) / len(within))
    assert found["images/between"] == pytest.approx(sum(between) / len(between))
    assert found["images/nearest"] == pytest.approx(min(between))


def test_one_image_per_class_has_no_distance_within_classes() -> None:
    assert set(image_distances(torch.eye(3), torch.arange(3))) == {"images/between", "images/nearest"}


def test_a_steady_fall_has_no_swing_and_doubling_in_turn_swings_by_its_logarithm() -> None:
    assert loss_course([2.0**-step for step in range(20)], 10)["loss/swing"] == pytest.approx(0, abs=1e-12)
    assert loss_course([1.0, 2.0] * 10 + [1.0], 10)["loss/swing"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("max_steps", "every", "readings"), [(5000, 10, 50), (300, 10, 6), (4, 10, 5), (200, 1, 40), (-1, 10, 50)]
)
def test_a_window_is_a_fifth_of_the_run_within_limits(max_steps: int, every: int, readings: int) -> None:
    assert window_length(max_steps, every) == readings
