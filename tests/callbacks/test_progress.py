"""A run whose output goes to a file is never silent for long."""

import re
import threading
import time
from pathlib import Path

import lightning as L
import pytest

from mim4dd_pl.app.cli import main
from mim4dd_pl.callbacks import progress
from mim4dd_pl.population.evaluator import Evaluator
from tests.conftest import CONFIGS, tiny_overlay


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Eight steps of DM, one validation after the last of them."""
    monkeypatch.chdir(tmp_path)
    tiny_overlay(tmp_path / "tiny.yaml", steps=8)
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("unroll_steps: 2", "real_per_class: 8"))
    return [f"--config={CONFIGS / 'distill/digits_dm.yaml'}", "--config=tiny.yaml"]


def test_a_step_says_how_far_the_run_is_when_a_minute_is_over(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SILENCE", 1e-9)
    assert main(["fit", *recipe]) == 0
    out = capsys.readouterr().out
    lines = re.findall(r"^step (\d)/8  loss [0-9.]+  \d+ s left", out, re.MULTILINE)
    assert sorted(set(lines)) == list("12345678")


def test_a_run_that_makes_no_step_says_what_it_does(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Evaluator.train

    def slow(*args: object, **settings: object) -> object:
        time.sleep(0.5)
        return train(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "train", slow)
    monkeypatch.setattr(progress, "_SILENCE", 0.2)
    assert main(["fit", *recipe]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^step 8/8 .* s left  training students to evaluate$", out, re.MULTILINE)
    assert re.search(r"^step 8/8 .* s left  training students for the closing table$", out, re.MULTILINE)
    assert main(["test", *recipe, "--ckpt_path=last"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^test, \d+ s so far  training students$", out, re.MULTILINE)
    assert re.search(r"^test, \d+ s so far  training the students of the other rows$", out, re.MULTILINE)


def test_no_line_is_said_early_and_no_thread_is_left(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *recipe]) == 0
    assert len(re.findall(r"^step .*", capsys.readouterr().out, re.MULTILINE)) == 1
    failing = "--trainer.callbacks+={class_path: tests.callbacks.test_progress.Failing}"
    with pytest.raises(RuntimeError, match="on purpose"):
        main(["fit", *recipe, failing])
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if "_watch" in thread.name]


class Failing(L.Callback):
    def on_train_batch_end(self, *_: object) -> None:
        raise RuntimeError("on purpose")
