"""Other data under the same path: nothing resumes on them, and what is evaluated on them says so."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mim4dd_pl.app.cli import main
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from tests.conftest import CONFIGS
from tests.fakes import noise

RECIPE = [
    *(f"--config={CONFIGS / name}" for name in ("distill/digits_dm.yaml", "with/smoke.yaml")),
    *("--data.source=Npz", "--data.source.init_args.path=set.npz", "--trainer.max_steps=4"),
    "--trainer.callbacks",
    """[{class_path: Evaluation, init_args: {num_students: 2, training: {epochs: 2}}}, {class_path: Export},
        {class_path: ClosingTable}, {class_path: LastCheckpoint}]""",
]
LAST = "--ckpt_path=last"
BEST = "checkpoints/digits_dm/version_0/distilled/best"


def save(train: int = 0, test: int = 0) -> None:
    """Two classes of noise, the labels of a split moved on by ``train`` or ``test``."""
    labels = np.arange(60) % 2
    np.savez("set.npz", x_train=noise(60, 8, 8), y_train=(labels + train) % 2,
             x_test=noise(40, 8, 8), y_test=(labels[:40] + test) % 2)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save()
        assert main(["fit", *RECIPE]) == 0
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of four steps on ``set.npz``."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    return Path.cwd()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "train", "test", "named"),
    [
        ("fit", 1, 0, "other training images or labels"),
        ("fit", 0, 1, "other test images or labels"),
        ("test", 1, 1, "other training and test images or labels"),
        ("validate", 1, 0, "other training images or labels"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused_and_nothing_is_touched(
    command: str, train: int, test: int, named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(train, test)
    before = contents(here / "checkpoints/digits_dm")
    assert main([command, *RECIPE, "--trainer.max_steps=8", LAST]) == 4
    error = capsys.readouterr().err
    assert f"last.ckpt was made with {named} than the recipe finds now" in error
    assert error.count("\n") == 1
    assert contents(here / "checkpoints/digits_dm") == before


def test_the_same_data_elsewhere_resume(here: Path) -> None:
    shutil.move("set.npz", "moved.npz")
    shutil.move("moved.npz", "set.npz")
    assert main(["fit", *RECIPE, "--trainer.max_steps=8", LAST]) == 0


def test_an_older_checkpoint_says_once_that_it_does_not_know_its_data(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / "checkpoints/digits_dm/version_0/checkpoints/last.ckpt"
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    assert sorted(checkpoint.pop("data")) == ["test", "training"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert main(["test", *RECIPE, LAST]) == 0
    assert capsys.readouterr().out.count("last.ckpt does not say which images it was made with") == 1


@pytest.mark.parametrize(("train", "test", "said"), [(0, 0, 0), (0, 1, 0), (1, 0, 1)])
def test_an_artefact_is_evaluated_on_other_data_and_says_if_it_was_made_from_others(
    train: int, test: int, said: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(train, test)
    assert main(["test", *RECIPE, f"--distilled={BEST}"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{BEST} was made from other training images or labels than this recipe's (set)") == said


def test_a_run_does_not_resume_to_fewer_steps_than_it_has_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *RECIPE, "--trainer.max_steps=2", LAST]) == 2
    assert "trainer.max_steps is 2, and the run has made 4 steps: set it to 4 or more" in capsys.readouterr().err
    assert main(["fit", *RECIPE, "--trainer.max_steps=4", LAST]) == 0
    assert main(["test", *RECIPE, "--trainer.max_steps=2", LAST]) == 0
