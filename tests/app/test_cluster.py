"""The script of docs/slurm.sh, with a scheduler of paper."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

WARNED = "trap 'exit 143' USR1; kill -USR1 $PPID; while true; do sleep 0.1; done"


def submit(folder: Path, ending: str, code: int) -> list[str]:
    """Run the script where ``ending`` is how a step ends, with ``code``; what it called."""
    for name, end in (("srun", ending), ("scontrol", "")):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{end}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}
    ended = subprocess.run(["bash", ROOT / "docs/slurm.sh"], cwd=folder, env=environment, timeout=60, check=False)
    assert ended.returncode == code
    return (folder / "calls").read_text().splitlines()


def test_a_job_that_was_warned_passes_it_on_and_is_requeued(tmp_path: Path) -> None:
    fit, requeue = submit(tmp_path, WARNED, 143)
    assert "--seed_everything 2" in fit
    assert "--ckpt_path" not in fit
    assert requeue == "scontrol requeue 41"


def test_a_requeued_job_goes_on_where_it_was(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/seed_2/cifar10_ipc1/version_0/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert submit(tmp_path, "exit 0", 0)[0].endswith("--ckpt_path last")


@pytest.mark.parametrize("code", [0, 1, 4, 143])
def test_a_job_that_was_not_warned_is_not_requeued(code: int, tmp_path: Path) -> None:
    assert len(submit(tmp_path, f"exit {code}", code)) == 1


def test_a_job_that_ends_well_in_spite_of_a_warning_is_not_requeued(tmp_path: Path) -> None:
    assert len(submit(tmp_path, WARNED.replace("143", "0"), 0)) == 1
