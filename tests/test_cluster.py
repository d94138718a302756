"""The script of docs/slurm.sh, with a scheduler of paper."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def submit(folder: Path, code: int) -> list[str]:
    """Run the script where fits end with ``code``; what it called."""
    for name, ending in (("srun", f"exit {code}"), ("scontrol", "")):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{ending}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}
    ended = subprocess.run(["bash", ROOT / "docs/slurm.sh"], cwd=folder, env=environment, timeout=60, check=False)
    assert ended.returncode == code
    return (folder / "calls").read_text().splitlines()


def test_a_job_that_was_stopped_is_requeued(tmp_path: Path) -> None:
    fit, requeue = submit(tmp_path, 143)
    assert "--seed_everything 2" in fit
    assert "--ckpt_path" not in fit
    assert requeue == "scontrol requeue 41"


def test_a_requeued_job_goes_on_where_it_was(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/seed_2/cifar10_ipc1/version_0/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert submit(tmp_path, 143)[0].endswith("--ckpt_path last")


@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_job_that_ended_by_itself_is_not_requeued(code: int, tmp_path: Path) -> None:
    assert len(submit(tmp_path, code)) == 1
