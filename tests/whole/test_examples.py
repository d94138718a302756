"""The examples run, are short, and do what they say; here in tiny form."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mim4dd_pl import distill
from mim4dd_pl.app.cli import main
from tests.conftest import ROOT, tiny_overlay

EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_at_most_forty_lines_of_code(path: Path) -> None:
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 40


def test_the_term_changes_what_a_plain_loop_learns() -> None:
    learn = example("information_term").main
    start, host, both = learn(steps=0), learn(share=0.0, steps=2), learn(share=0.3, steps=2)
    assert start.shape == (10, 1, 8, 8)
    assert not torch.equal(start, host)
    assert not torch.equal(host, both)


def test_images_that_are_learned_through_an_unroll_lower_the_loss_on_real_ones() -> None:
    images, losses = example("exact_unroll").main(outer_steps=8, inner_steps=3)
    assert images.shape == (10, 1, 8, 8)
    assert losses[-1] < losses[0]


def test_a_resnet_of_torchvision_trains_on_an_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_overlay(tmp_path / "tiny.yaml", steps=1)
    accuracy = example("train_resnet").main(distill("digits", "tiny.yaml", steps=1), epochs=20)
    assert accuracy > 0.3  # chance is 0.1


def test_own_parts_in_the_working_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in EXAMPLES.glob("own_parts.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as the program's entry point does
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main(["fit", "-c", "own_parts.yaml", *steps]) == 0
    assert (tmp_path / "checkpoints/stripes/version_0/distilled/best/sheet.png").is_file()
