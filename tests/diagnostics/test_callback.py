"""Diagnostics in a fit: what they say, keep and cost."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.data.sets import Indexable
from mim4dd_pl.diagnostics.callback import Diagnostics
from mim4dd_pl.information.critics import SigmoidCritic
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.population.evaluator import Evaluator, Students
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.scores import Score
from mim4dd_pl.population.training import Training


class Fit:
    """A tiny fit under the eyes of diagnostics, and what the callback was left with."""

    def __init__(self, data: ImageDataModule, experts: Experts, folder: Path) -> None:
        self.data, self.experts, self.folder = data, experts, folder

    def __call__(self, *callbacks: L.Callback, steps: int = 12, **settings: Any) -> DistillationModule:
        settings = {"lr_images": 0.1, "lr_student_lr": 1e-5, "student_lr": 0.1, **settings}
        network, host = partial(ConvNet, depth=1, width=4), TrajectoryMatching(2, 1, 2)
        module = DistillationModule(network, (1, 8, 8), 10, host, self.experts, **settings)
        trainer = L.Trainer(
            max_epochs=-1,
            max_steps=steps,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            inference_mode=False,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            callbacks=list(callbacks),
        )
        trainer.fit(module, datamodule=self.data)
        return module

    def kept(self) -> list[dict[str, Any]]:
        fired: list[dict[str, Any]] = json.loads((self.folder / "diagnostics.json").read_text())
        return fired


@pytest.fixture
def fit(data: ImageDataModule, experts: Experts, tmp_path: Path) -> Fit:
    return Fit(data, experts, tmp_path)


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(Training(epochs=1, batch_size=10, lr=0.01), num_students=2)


def literal(layers: Any, classes: int) -> InformationTerm:
    """A term of far too much weight."""
    return InformationTerm(layers, classes, partial(SigmoidCritic, reduction="paper"), weight=1e4, balance="literal")


SICK: list[tuple[str, dict[str, Any]]] = [
    ("explosion", {"lr_student_lr": 1e-2}),
    ("drowned_host", {"information": literal, "lr_images": 1e-6}),
    ("student_lr_at_floor", {"lr_student_lr": 1e-3}),
]


@pytest.mark.parametrize(("name", "settings"), SICK, ids=[name for name, _ in SICK])
def test_a_sick_fit_is_told_so_once(
    name: str, settings: dict[str, Any], fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    fit(Diagnostics(every_n_steps=1), **settings)
    (kept,) = [each for each in fit.kept() if each["name"] == name]
    assert 1 <= kept["step"] <= 12
    said = [record for record in caplog.records if kept["message"] in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert said[0].name.startswith("mim4dd_pl")


def test_a_healthy_fit_hears_nothing_and_its_file_says_so(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    fit(Diagnostics(every_n_steps=1), information=InformationTerm, images_per_class=2)
    assert fit.kept() == []
    assert not [record for record in caplog.records if "Diagnostics" in record.getMessage()]


def test_diagnostics_never_steer(fit: Fit, evaluation: Evaluation) -> None:
    watched = fit(Diagnostics(every_n_steps=1), evaluation, information=InformationTerm)
    alone = fit(evaluation, information=InformationTerm)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_a_resumed_fit_says_nothing_twice_and_keeps_what_was_said(
    fit: Fit, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first, second = Diagnostics(every_n_steps=1), Diagnostics(every_n_steps=1)
    fit(first, **SICK[2][1])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    kept = fit.kept()
    caplog.clear()
    fit(second, **SICK[2][1])
    assert fit.kept()[: len(kept)] == kept
    assert "student_lr_at_floor" not in {each["name"] for each in fit.kept()[len(kept) :]}


def test_the_baseline_is_trained_once_and_sees_validation_images_only(
    fit: Fit, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Evaluator.validate

    def spy(evaluator: Evaluator, trained_on: str, students: Students) -> Score:
        score = real(evaluator, trained_on, students)
        seen.append(int(score.confusion[0].sum()))
        return score

    monkeypatch.setattr(Evaluator, "validate", spy)
    diagnostics = Diagnostics()
    fit(evaluation, diagnostics)
    assert seen == [len(fit.data.validation)]
    kept = diagnostics.state_dict()["random_real"]
    assert 0 < kept["validation/accuracy_random_real"] < 1
    assert 0 <= kept["validation/accuracy_std_random_real"] < 1


def test_the_baseline_is_as_cheap_as_the_validations(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two students of one epoch, although the table has three of two."""
    trained: list[tuple[int, int]] = []
    real = Evaluator.train

    def spy(evaluator: Evaluator, sets: Sequence[Indexable], *args: Any, **settings: Any) -> Students:
        trained.append((len(sets), evaluator.protocol.training.epochs))
        return real(evaluator, sets, *args, **settings)

    monkeypatch.setattr(Evaluator, "train", spy)
    training = Training(epochs=2, batch_size=10, lr=0.01)
    fit(Evaluation(training, 3, during_students=2, during_epochs=1), Diagnostics())
    assert trained == 4 * [(2, 1)]  # three validations and the baseline


def test_a_fit_without_validation_on_held_out_images_has_no_baseline(
    fit: Fit, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for callbacks in ([evaluation, Diagnostics(baseline=False)], [Diagnostics()]):
        fit(*callbacks, steps=4)
        assert isinstance(callbacks[-1], Diagnostics)
        assert callbacks[-1].state_dict()["random_real"] == {}
    monkeypatch.setattr(fit.data, "validate_on", "test")
    diagnostics = Diagnostics()
    fit(evaluation, diagnostics, steps=4)
    assert diagnostics.state_dict()["random_real"] == {}


def test_readings_are_at_least_a_step_apart() -> None:
    with pytest.raises(ValueError, match=r"^every_n_steps must be at least 1, got 0"):
        Diagnostics(every_n_steps=0)
