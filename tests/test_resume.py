"""Kill it anywhere, resume, and get the same bits."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mim4dd_pl.cli import main
from mim4dd_pl.files import sha256
from tests.conftest import CONFIGS, ROOT

RECIPE = [
    "fit",
    *("-c", str(CONFIGS / "distill/digits.yaml")),
    *("-c", str(CONFIGS / "with/mutual_information.yaml")),
    *("-c", str(CONFIGS / "with/smoke.yaml")),
    "--trainer.max_steps=8",
    "--trainer.val_check_interval=4",
    "--trainer.callbacks",
    """[{class_path: Evaluation, init_args: {num_students: 2, training: {epochs: 3}}},
        {class_path: Export}, {class_path: LastCheckpoint, init_args: {every_n_steps: 2}}]""",
]


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must agree: artefacts byte by byte, weights, optimisers, the best so far."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {
        "step": checkpoint["global_step"],
        "weights": checkpoint["state_dict"],
        "optimizers": [state["state"] for state in checkpoint["optimizer_states"]],
        "best": checkpoint["callbacks"]["Export"],
        "files": [int(sha256(run / f"distilled/{which}/manifest.json"), 16) for which in ("best", "last")],
    }


def in_folder(folder: Path) -> list[str]:
    return [f"--trainer.logger.init_args.save_dir={folder}", f"--model.experts.root={folder}/experts"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert main([*RECIPE, *in_folder(folder)]) == 0
    return outcome(folder / "digits/version_0")


@pytest.mark.parametrize(
    ("step", "moment", "lost"),
    [(5, "step", 1), (4, "validation", 2), (6, "save", 2), (8, "save", 2)],
    ids=["step", "validation", "save", "last save"],
)
def test_kill_minus_nine_and_resume_equals_no_kill(
    uninterrupted: dict[str, Any], tmp_path: Path, step: int, moment: str, lost: int
) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    kill = ["--trainer.callbacks+", f"{{class_path: tests.kill.KillAt, init_args: {{step: {step}, moment: {moment}}}}}"]
    program = [sys.executable, "-m", "mim4dd_pl"]
    killed = subprocess.run([*program, *arguments, *kill], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "digits/version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step - lost
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    torch.testing.assert_close(outcome(run), uninterrupted, rtol=0, atol=0)


def test_a_finished_run_resumes_to_itself(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--ckpt_path=last"]) == 0
    torch.testing.assert_close(outcome(tmp_path / "digits/version_0"), uninterrupted, rtol=0, atol=0)


def test_another_seed_is_another_run(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    assert main([*RECIPE, *in_folder(tmp_path), "--seed_everything=1"]) == 0
    other = outcome(tmp_path / "digits/version_0")
    assert not torch.equal(other["weights"]["synthetic.images"], uninterrupted["weights"]["synthetic.images"])


def test_finished_experts_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    assert main(arguments) == 0

    def refuse(*_: Any) -> Callable[..., Any]:
        raise AssertionError("an expert was trained a second time")

    monkeypatch.setattr("mim4dd_pl.population.Experts.train", refuse)
    assert main(arguments) == 0
    torch.testing.assert_close(outcome(tmp_path / "digits/version_1"), uninterrupted, rtol=0, atol=0)
