"""Two runs never write into one folder, and a killed one leaves no lock behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mim4dd_pl.app.cli import main
from tests.conftest import CONFIGS, ROOT


def recipe(folder: Path) -> list[str]:
    """A run that would take minutes."""
    return [
        *("-c", str(CONFIGS / "distill/digits.yaml")),
        *("-c", str(CONFIGS / "with/smoke.yaml")),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--model.experts.root={folder}/experts",
        "--model.compile=false",
        "--trainer.max_steps=4000",
        "--trainer.callbacks=[{class_path: LastCheckpoint, init_args: {every_n_steps: 1}}]",
    ]


def start(folder: Path) -> "subprocess.Popen[str]":
    program = [sys.executable, "-m", "mim4dd_pl", "fit", *recipe(folder)]
    return subprocess.Popen(program, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, run: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list["subprocess.Popen[str]"]]]:
    """Two runs of one recipe, started at the same instant, that have both kept a checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    runs = [start(folder) for _ in range(2)]
    try:
        for number in range(2):
            wait_for(folder / f"digits/version_{number}/checkpoints/last.ckpt", runs[number])
        yield folder, runs
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def test_runs_that_start_together_have_a_folder_each(two: tuple[Path, list["subprocess.Popen[str]"]]) -> None:
    folder, _ = two
    assert sorted(path.name for path in (folder / "digits").iterdir()) == ["version_0", "version_1"]


def test_a_second_run_in_a_folder_is_refused_while_the_first_lives_and_not_after_its_kill(
    two: tuple[Path, list["subprocess.Popen[str]"]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, runs = two
    arguments = ["fit", *recipe(folder), "--ckpt_path"]
    newest = folder / "digits/version_1"
    assert main([*arguments, "last"]) == 4
    assert capsys.readouterr().err == (
        f"mim4dd: error: {newest} is in use by another `mim4dd fit`: wait for its end, or start a new run.\n"
    )
    for run in runs:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert (newest / ".lock").exists()
    assert main([*arguments, str(newest / "checkpoints/last.ckpt"), "--trainer.max_steps=4"]) == 0
    assert not (newest / ".lock").exists()


def test_a_new_run_does_not_write_over_a_finished_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", *recipe(tmp_path), "--trainer.max_steps=2"]
    assert main(arguments) == 0
    run = tmp_path / "digits/version_0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([*arguments, "--trainer.logger.init_args.version=0"]) == 4
    assert f"{run} holds a run: go on with it by --ckpt_path last" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_recipe_of_a_continued_run_is_that_of_a_new_one(tmp_path: Path) -> None:
    arguments = ["fit", *recipe(tmp_path), "--trainer.max_steps=2"]
    assert main(arguments) == 0
    assert main([*arguments, "--ckpt_path=last"]) == 0
    kept = yaml.safe_load((tmp_path / "digits/version_0/config.yaml").read_text())
    assert kept["trainer"]["logger"]["init_args"]["version"] is None
