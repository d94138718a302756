"""Kill it anywhere, resume, and get the same bits."""

import csv
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim4dd_pl import DistilledDataset
from mim4dd_pl.app.cli import main
from mim4dd_pl.app.recipes import short_classes
from mim4dd_pl.app.resuming import difference
from mim4dd_pl.basics.files import sha256
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from tests.conftest import CONFIGS, ROOT

RECIPE = [
    "fit",
    *("-c", str(CONFIGS / "distill/digits.yaml")),
    *("-c", str(CONFIGS / "with/mutual_information.yaml")),
    *("-c", str(CONFIGS / "with/formation.yaml")),
    *("-c", str(CONFIGS / "with/soft_labels.yaml")),
    *("-c", str(CONFIGS / "with/smoke.yaml")),
    "--model.information.warm_up_steps=3",
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main([*RECIPE, *in_folder(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def uninterrupted(finished: Path) -> dict[str, Any]:
    return outcome(finished / "digits/version_0")


def kill(arguments: list[str], step: int, moment: str) -> None:
    callback = [
        "--trainer.callbacks+",
        f"{{class_path: tests.kill.KillAt, init_args: {{step: {step}, moment: {moment}}}}}",
    ]
    program = [sys.executable, "-m", "mim4dd_pl"]
    killed = subprocess.run([*program, *arguments, *callback], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_kill_minus_nine_among_the_experts_keeps_the_finished_ones(
    uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    kill(arguments, 1, "expert")
    finished = tmp_path / "experts/expert_0000.safetensors"
    written = finished.stat().st_mtime_ns
    assert not (tmp_path / "experts/expert_0001.safetensors").exists()
    assert main(arguments) == 0
    assert finished.stat().st_mtime_ns == written
    assert not list(tmp_path.rglob("*.tmp"))
    torch.testing.assert_close(outcome(tmp_path / "digits/version_1"), uninterrupted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_with_its_code_and_one_line(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "mim4dd_pl", *RECIPE, *in_folder(tmp_path), "--trainer.max_steps=4000"]
    # A shell starts background jobs with SIGINT ignored, and children inherit that: the program shall see a terminal's.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        program, cwd=ROOT, text=True, preexec_fn=default, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        try:
            while not run.stdout.readline().startswith("step 8/"):
                assert run.poll() is None
            run.send_signal(number)
            _, stderr = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == code
    assert [line for line in stderr.splitlines() if line.startswith("mim4dd")] == [
        f"mim4dd: {word}; a run that has a checkpoint goes on with --ckpt_path last"
    ]


@pytest.mark.parametrize(
    ("step", "moment", "lost"),
    [(5, "step", 1), (4, "validation", 0), (6, "save", 2), (4, "save", 2), (8, "validation", 1), (8, "save", 1)],
    ids=["step", "validation", "save", "save before a validation", "last validation", "last save"],
)
def test_kill_minus_nine_and_resume_equals_no_kill(
    uninterrupted: dict[str, Any], tmp_path: Path, step: int, moment: str, lost: int
) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    kill(arguments, step, moment)
    run = tmp_path / "digits/version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step - lost
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert not list(tmp_path.rglob("*.tmp"))
    torch.testing.assert_close(outcome(run), uninterrupted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "moment", "number", "kept"),
    [
        (2, "step", signal.SIGINT, 3),
        (6, "step", signal.SIGTERM, 7),
        (3, "step", signal.SIGUSR1, 4),
        (4, "validation", signal.SIGTERM, 4),
        (7, "step", signal.SIGTERM, 7),
        (8, "validation", signal.SIGINT, 7),
    ],
    ids=[
        "Ctrl-C",
        "SIGTERM",
        "before a validation",
        "within a validation",
        "in the last step",
        "in the last validation",
    ],
)
def test_a_signal_keeps_the_step_at_hand_and_the_resumed_run_equals_the_uninterrupted_one(
    uninterrupted: dict[str, Any], tmp_path: Path, step: int, moment: str, number: int, kept: int
) -> None:
    arguments = [*RECIPE, *in_folder(tmp_path)]
    send = f"{{class_path: tests.kill.KillAt, init_args: {{step: {step}, moment: {moment}, signal: {int(number)}}}}}"
    sparse = "--trainer.callbacks.init_args.every_n_steps=100"
    assert main([*arguments, sparse, "--trainer.callbacks+", send]) == (130 if number == signal.SIGINT else 143)
    run = tmp_path / "digits/version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == kept
    assert main([*arguments, "--ckpt_path=last"]) == 0
    torch.testing.assert_close(outcome(run), uninterrupted, rtol=0, atol=0)


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "digits/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_and_resumed_run_has_the_csv_of_the_uninterrupted_one(finished: Path, tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.log_every_n_steps=1", "--trainer.logger.init_args.name=digits"]
    arguments, whole = (
        [*RECIPE, *logger, f"--trainer.logger.init_args.save_dir={folder}", f"--model.experts.root={finished}/experts"]
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert main(whole) == 0
    kill(arguments, 5, "step")
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert len(table_of(tmp_path)) >= 8
    assert table_of(tmp_path) == table_of(tmp_path / "whole")


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

    monkeypatch.setattr("mim4dd_pl.population.experts.Experts.train", refuse)
    assert main(arguments) == 0
    torch.testing.assert_close(outcome(tmp_path / "digits/version_1"), uninterrupted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--model.init_args.lr_images=0.5", "model.lr_images 10.0, this recipe has 0.5"),
        ("--model.init_args.images_per_class=2", "model.images_per_class 1, this recipe has 2"),
        ("--model.information=null", "model.information.class_path InformationTerm, this recipe has none"),
        ("--seed_everything=7", "seed_everything 0, this recipe has 7"),
        ("--data.validation_fraction=0.2", "data.validation_fraction 0.1, this recipe has 0.2"),
    ],
)
def test_another_recipe_does_not_resume_a_run_and_touches_nothing(
    finished: Path, changed: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main([*RECIPE, *in_folder(finished), "--ckpt_path=last", changed]) == 4
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_an_allowed_change_is_applied_from_there_on(finished: Path, tmp_path: Path) -> None:
    """A pixel learning rate of zero leaves the images where they were; momentum 0 lets nothing carry them on."""
    shutil.copytree(finished, tmp_path / "copy")
    arguments = [*RECIPE, *in_folder(tmp_path / "copy"), "--trainer.max_steps=12", "--ckpt_path=last"]
    changes = ["--model.init_args.lr_images=0", "--model.init_args.momentum=0"]
    assert main([*arguments, *changes, "--allow_changes=model.lr_images"]) == 4
    assert main([*arguments, *changes, "--allow_changes=model.lr_images,model.momentum"]) == 0
    before, after = (outcome(folder / "digits/version_0")["weights"] for folder in (finished, tmp_path / "copy"))
    torch.testing.assert_close(after["synthetic.images"], before["synthetic.images"], rtol=0, atol=0)
    assert not torch.equal(after["synthetic.student_lr"], before["synthetic.student_lr"])
    # The change is part of the run from now on.
    assert main([*arguments, *changes]) == 0


def test_a_longer_run_goes_on_where_the_shorter_one_ended(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    longer = ["--trainer.max_steps=12", f"--model.experts.root={finished}/experts"]
    assert main([*RECIPE, *in_folder(tmp_path / "copy"), *longer, "--ckpt_path=last"]) == 0
    assert main([*RECIPE, *in_folder(tmp_path / "whole"), *longer]) == 0
    runs = [outcome(tmp_path / which / "digits/version_0") for which in ("copy", "whole")]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_best_is_the_state_that_was_validated_best(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished / "digits/version_0"
    events = EventAccumulator(str(run))
    events.Reload()
    accuracies = [event.value for event in events.Scalars("validation/accuracy")]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 4 * (1 + accuracies.index(max(accuracies)))
    learned = DistilledDataset(run / "distilled/best").canvases
    torch.testing.assert_close(best["state_dict"]["synthetic.images"], learned, rtol=0, atol=0)
    assert main(["validate", *RECIPE[1:], *in_folder(finished), "--ckpt_path=best"]) == 0
    assert f"validation accuracy {100 * max(accuracies):.2f} +- " in capsys.readouterr().out


def test_a_run_goes_back_to_its_best_and_ends_where_it_ended(
    uninterrupted: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    assert main([*RECIPE, *in_folder(tmp_path / "copy"), "--ckpt_path=best"]) == 0
    torch.testing.assert_close(outcome(tmp_path / "copy/digits/version_0"), uninterrupted, rtol=0, atol=0)


def test_a_run_without_a_validation_has_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits/version_0/checkpoints").mkdir(parents=True)
    (tmp_path / "digits/version_0/checkpoints/last.ckpt").touch()
    assert main([*RECIPE, *in_folder(tmp_path), "--ckpt_path=best"]) == 4
    assert "none has checkpoints/best.ckpt" in capsys.readouterr().err


def test_last_is_the_newest_run_of_this_recipe(finished: Path, tmp_path: Path) -> None:
    """Beside it lie a run with another setting, one that died before its first checkpoint, and something else."""
    shutil.copytree(finished, tmp_path / "copy")
    arguments = [*RECIPE, *in_folder(tmp_path / "copy")]
    assert main([*arguments, "--model.init_args.lr_images=0.5"]) == 0
    runs = tmp_path / "copy/digits"
    for name in ("version_2", "version_7_old"):
        (runs / name).mkdir()
    other = (runs / "version_1/checkpoints/last.ckpt").read_bytes()
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert (runs / "version_1/checkpoints/last.ckpt").read_bytes() == other
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1", "version_2", "version_7_old"]
    assert not list((runs / "version_2").iterdir())


def test_a_class_is_the_same_wherever_its_file_lies() -> None:
    """Checkpoints of version 0.1.0 hold paths of files that have moved."""
    state = dict.fromkeys(("state_dict", "optimizer_states", "loops", "global_step"))
    kept = {"model.information.class_path": "mim4dd_pl.information.InformationTerm", "model.network": "mine.Network"}
    now = short_classes({"model.information.class_path": "mim4dd_pl.InformationTerm", "model.network": "mine.Network"})
    assert difference({**state, "callbacks": {"KeepRecipe": kept}}, now) is None


def test_a_checkpoint_older_than_a_setting_goes_on_with_what_there_was_before() -> None:
    state = dict.fromkeys(("state_dict", "optimizer_states", "loops", "global_step"))
    state["callbacks"] = {"KeepRecipe": {"model.lr_images": 1.0}}
    now = {"model.lr_images": 1.0, "model.experts.training.lr_drops": [], "model.experts.training.cutmix": 0.0}
    now |= {"model.init_args.formation": 1, "model.init_args.half_precision": False}
    assert difference(state, now) is None
    changed = {**now, "model.experts.training.cutmix": 0.5}
    assert difference(state, changed) == "was made with model.experts.training.cutmix 0.0, this recipe has 0.5"
    assert difference(state, {**now, "model.momentum": 0.5}) == (
        "was made with model.momentum none, this recipe has 0.5"
    )


def test_a_resumed_run_whose_validations_are_cheaper_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    cheaper = RECIPE[-1].replace(
        "{num_students: 2, training: {epochs: 3}}",
        "{num_students: 3, during_students: 2, during_epochs: 2, training: {epochs: 4, cutmix: 0.5, lr_drops: [0.6]}}",
    )
    assert cheaper != RECIPE[-1]
    runs = [[*RECIPE[:-1], cheaper, *in_folder(tmp_path / which)] for which in ("whole", "killed")]
    assert main(runs[0]) == 0
    kill(runs[1], 7, "step")
    assert main([*runs[1], "--ckpt_path=last"]) == 0
    outcomes = [outcome(tmp_path / which / "digits/version_0") for which in ("whole", "killed")]
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def test_a_run_whose_heads_learned_from_an_unweighted_literal_term_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [*RECIPE, *in_folder(tmp_path), "--model.information.balance=literal"]
    assert main(recipe) == 0
    (path,) = tmp_path.glob("*/version_0/checkpoints/last.ckpt")
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    del checkpoint["weighted_term"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    capsys.readouterr()
    assert main([*recipe, "--ckpt_path=last"]) == 4
    assert "begun before a literal weight was part of the term's loss" in capsys.readouterr().err
    assert main(["validate", *recipe[1:], "--ckpt_path=last"]) == 0
