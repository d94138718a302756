"""Several processes: the same bits as one, and one end for all."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch

from mim4dd_pl.app.cli import main
from mim4dd_pl.app.processes import _environments
from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.experts import ExpertTrainer
from mim4dd_pl.modules.gradients import Gradients, gathered
from mim4dd_pl.modules.share import own_share
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.trajectories import TrajectorySpec, TrajectoryStore
from tests.conftest import CONFIGS, ROOT, randn

RECIPE = [
    *("-c", str(CONFIGS / "distill/digits.yaml")),
    *("-c", str(CONFIGS / "with/mutual_information.yaml")),
    *("-c", str(CONFIGS / "with/formation.yaml")),
    *("-c", str(CONFIGS / "with/smoke.yaml")),
    "--model.segments_per_step=4",
    "--model.experts.num_experts=3",  # one process has one more than the other
    "--trainer.accelerator=cpu",
    "--model.information.warm_up_steps=3",
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=10",
    "--trainer.callbacks",
    """[{class_path: Evaluation, init_args: {num_students: 3, training: {epochs: 3}}},
        {class_path: Export}, {class_path: LastCheckpoint, init_args: {every_n_steps: 5}}]""",
]


def command(word: str, folder: Path, processes: int) -> list[str]:
    places = [f"--trainer.logger.init_args.save_dir={folder}", f"--model.experts.root={folder}/experts"]
    return [word, *RECIPE, *places, f"--trainer.devices={processes}"]


def killed_at(step: int, number: int, process: int = 0, parent: bool = False) -> list[str]:
    settings = f"step: {step}, moment: step, signal: {number}, process: {process}, parent: {str(parent).lower()}"
    return ["--trainer.callbacks+", f"{{class_path: tests.kill.KillAt, init_args: {{{settings}}}}}"]


def weights(folder: Path) -> dict[str, Any]:
    """Images, student learning rate, heads and their optimisers."""
    checkpoint = torch.load(folder / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
    return {
        "weights": checkpoint["state_dict"],
        "optimizers": [each["state"] for each in checkpoint["optimizer_states"]],
    }


def run(arguments: list[str], timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-m", "mim4dd_pl", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that work in this folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    """With the experts, and no run."""
    shutil.copytree(alone / "experts", tmp_path / "experts")
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(command("fit", folder, 1)) == 0
    return folder


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_change_no_bit_of_images_lr_and_heads(processes: int, alone: Path, tmp_path: Path) -> None:
    assert main(command("fit", tmp_path, processes)) == 0
    torch.testing.assert_close(weights(tmp_path), weights(alone), rtol=0, atol=0)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_change_no_digit_of_a_validation(
    processes: int, alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command("validate", alone, 1), "--ckpt_path=last"]) == 0
    one = capfd.readouterr()
    assert main([*command("validate", alone, processes), "--ckpt_path=last"]) == 0
    assert capfd.readouterr() == one
    assert re.fullmatch(r"validation accuracy \d+\.\d\d \+- \d+\.\d\d % \(3 students\)\n", one.out)


def test_one_process_that_is_killed_ends_them_all_with_one_message(folder: Path) -> None:
    ended = run([*command("fit", folder, 2), *killed_at(7, signal.SIGKILL, process=1)], timeout=60)
    assert ended.returncode == 128 + signal.SIGKILL
    assert "mim4dd: error: Process 1 was killed by SIGKILL; a run that has a checkpoint goes on" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not left_over(folder)


def test_terminated_processes_keep_their_step_and_go_on_as_if_nothing_had_been(alone: Path, folder: Path) -> None:
    arguments = command("fit", folder, 2)
    ended = run([*arguments, *killed_at(7, signal.SIGTERM, parent=True)])
    assert ended.returncode == 143
    assert ended.stderr == "mim4dd: terminated; a run that has a checkpoint goes on with --ckpt_path last\n"
    kept = torch.load(folder / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] in (8, 9)  # the signal takes a moment to come back
    assert main([*arguments, "--ckpt_path=last"]) == 0
    torch.testing.assert_close(weights(folder), weights(alone), rtol=0, atol=0)


@pytest.mark.slow
def test_processes_end_when_their_parent_is_killed(folder: Path) -> None:
    endless = ["--trainer.max_steps=4000", "--model.compile=false"]
    ended = run([*command("fit", folder, 2), *endless, *killed_at(3, signal.SIGKILL, parent=True)])
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_over(folder)


def test_nodes_without_a_launcher_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command("fit", tmp_path, 2), "--trainer.num_nodes=2"]) == 2
    assert "nothing has started processes on the nodes: use torchrun or srun" in capsys.readouterr().err


def test_processes_meet_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MASTER_ADDR", "elsewhere"), ("MASTER_PORT", "29500"), ("NODE_RANK", "1")):
        monkeypatch.setenv(name, value)  # a cluster's, of another job
    first, second = _environments(2).values()
    assert (first["RANK"], second["RANK"], second["WORLD_SIZE"], second["NODE_RANK"]) == ("0", "1", "2", "0")
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"] != "29500"


def test_each_number_belongs_to_one_process() -> None:
    shares = [own_share(cast(L.Trainer, SimpleNamespace(global_rank=rank, world_size=3)), 8) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_one_message_carries_all_fields(stream: Stream) -> None:
    shapes = [(), (3, 1, 2, 2), (), (0,), (), (2,), (3, 1, 2, 2), (), (5,)]
    own = Gradients(*(randn(stream.at("own", number), 2, *shape) for number, shape in enumerate(shapes)))
    both = gathered(own, lambda rows: torch.stack([rows, 2 * rows], 1).flatten(0, 1))
    for mine, all_rows in zip(own, both, strict=True):
        assert torch.equal(all_rows, torch.stack([mine, 2 * mine], 1).flatten(0, 1))


def test_processes_agree_on_the_experts_that_are_missing(tmp_path: Path, training: Training, stream: Stream) -> None:
    """This one opened the folder before another run kept an expert, process 0 afterwards."""
    experts, spec = Experts(str(tmp_path), training, num_experts=3), TrajectorySpec("digits", "0a", {}, 7, {}, 3, 0)
    early, late = TrajectoryStore(tmp_path, spec), TrajectoryStore(tmp_path, spec)
    late.add(0, randn(stream, 4, 7))
    strategy = SimpleNamespace(broadcast=lambda own: experts.missing(late), root_device=torch.device("cpu"))
    trainer = cast(L.Trainer, SimpleNamespace(strategy=strategy, world_size=2))
    some: Any = None
    assert ExpertTrainer(experts, early, some, some, trainer, False).missing() == [1, 2]
    assert early.finished == [0]


def second_of_two(heard: object) -> Any:
    """What a module sees of its run in the second of two processes, where the first says ``heard``."""
    return SimpleNamespace(is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda own: heard))


def test_processes_that_found_different_checkpoints_do_not_go_on() -> None:
    module: Any = SimpleNamespace(trainer=second_of_two(8))
    with pytest.raises(StoredFileError, match="name the file in --ckpt_path"):
        DistillationModule.on_load_checkpoint(module, {"global_step": 6})


@pytest.mark.parametrize("found", [torch.ones(2, 3), None])
def test_the_first_process_looks_for_an_expert_and_tells_the_others(found: torch.Tensor | None) -> None:
    """The second one has no store to look into."""
    module: Any = SimpleNamespace(trainer=second_of_two(found), device=torch.device("cpu"))
    assert DistillationModule.seen_by_expert(module, torch.ones(2, 1, 4, 4)) is found
