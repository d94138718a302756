"""The parent of several processes, and how each of them ends; here the program is a few lines."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mim4dd_pl.app import processes
from mim4dd_pl.app.processes import LOST_PEER, check_started, parted, run_all
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.callbacks.preemption import answering_signals
from tests.conftest import CONFIGS, ROOT

Watched = Callable[..., tuple[int, str]]

ENDED = "mim4dd: error: Another process of the run has ended.\n"
KILLED = "mim4dd: error: Process {} was killed by SIGKILL; a run that has a checkpoint goes on with --ckpt_path last.\n"
STOPPED = "mim4dd: {}; a run that has a checkpoint goes on with --ckpt_path last\n"

# Programs of a process; each begins when all of them have come as far.
BEGIN = """
pathlib.Path(os.environ["RANK"]).touch()
while not all(pathlib.Path(str(number)).exists() for number in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
"""
WAITING = BEGIN + "time.sleep(60)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WAITING


def leaving(code: int, seconds: float = 0) -> str:
    """Of its own accord, whatever it hears."""
    return f"signal.signal(signal.SIGTERM, signal.SIG_IGN){BEGIN}time.sleep({seconds}); os._exit({code})"


def answering(code: int) -> str:
    """When it is asked to."""
    return f"[signal.signal(number, lambda *_: os._exit({code})) for number in (2, 10, 15)]{WAITING}"


def killed(number: int) -> str:
    return f"{BEGIN}os.kill(os.getpid(), {number})"


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Watched:
    """Runs programs as the processes of one run; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def watch(programs: list[str], signals: tuple[int, ...] = ()) -> tuple[int, str]:
        (tmp_path / "mim4dd_pl.py").write_text(
            f"import os, pathlib, signal, time\nexec({programs!r}[int(os.environ['RANK'])])"
        )
        ready = [tmp_path / str(number) for number in range(len(programs))]

        def ask() -> None:
            while not all(path.exists() for path in ready):
                time.sleep(0.05)
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.3)

        asker = threading.Thread(target=ask)
        if signals:
            asker.start()
        with answering_signals():
            code = run_all([], len(programs))
        if signals:
            asker.join()
        return code, capfd.readouterr().err

    return watch


@pytest.mark.parametrize(
    ("programs", "code", "said"),
    [
        ([leaving(0), leaving(0, 1)], 0, ""),
        ([leaving(LOST_PEER), leaving(4, 1), leaving(2, 2)], 4, ""),
        ([leaving(2, 1), killed(signal.SIGKILL)], 137, KILLED.format(1)),
        ([leaving(LOST_PEER), leaving(LOST_PEER)], LOST_PEER, ENDED),
        ([leaving(143, 1), answering(143)], 143, STOPPED.format("terminated")),  # one of them was asked, by others
        ([leaving(3), WAITING], 3, ""),
    ],
    ids=["done", "a cause before what it led to", "a kill", "lost each other", "stopped", "waiting"],
)
def test_the_end_of_one_process_ends_all_and_is_told_in_one_line(
    programs: list[str], code: int, said: str, watched: Watched
) -> None:
    assert watched(programs) == (code, said)


@pytest.mark.parametrize(
    ("programs", "signals", "code", "said"),
    [
        ([answering(143)] * 2, (signal.SIGTERM,), 143, STOPPED.format("terminated")),
        ([answering(130)] * 2, (signal.SIGINT,), 130, STOPPED.format("interrupted")),
        ([answering(143)] * 2, (signal.SIGUSR1,), 143, STOPPED.format("terminated")),
        ([answering(0)] * 2, (signal.SIGTERM,), 0, ""),  # the last step was made
        ([answering(4), answering(143)], (signal.SIGTERM,), 4, ""),  # no room for the checkpoint
        ([WAITING] * 2, (signal.SIGTERM,), 143, STOPPED.format("terminated")),
        ([DEAF] * 2, (signal.SIGTERM,) * 2, 143, STOPPED.format("terminated")),
        ([DEAF] * 2, (signal.SIGTERM,) * 3, 143, STOPPED.format("terminated")),
    ],
    ids=["terminated", "interrupted", "warned", "done", "failed", "not ready", "twice", "three times"],
)
def test_a_signal_is_passed_on_and_what_came_of_it_is_told_in_one_line(
    programs: list[str],
    signals: tuple[int, ...],
    code: int,
    said: str,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "GRACE", 2 if len(signals) == 2 else 100)
    begun = time.monotonic()
    assert watched(programs, signals) == (code, said)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), LOST_PEER, "has ended"),
        (RuntimeError("[gloo/x.cc:1] Timed out waiting 1000ms for recv"), 2, "trainer.strategy.timeout"),
        (torch.distributed.DistNetworkError("port: 29500, name: EADDRINUSE\nstack"), 2, "together: port: 29500"),
        (torch.distributed.DistStoreError("Timed out after 61 seconds waiting for clients"), 2, "61 seconds"),
        (RuntimeError("a bug of ours"), None, ""),
    ],
)
def test_errors_between_processes_say_their_reason(
    error: RuntimeError, code: int | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parted(error) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == (code is not None)


def test_a_process_leaves_it_to_its_parent_to_say_who_has_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIM4DD_PARENT", "1")
    assert parted(RuntimeError("[gloo/x.cc:1] Connection reset by peer")) == LOST_PEER
    assert not capsys.readouterr().err


def test_gloo_says_of_a_peer_that_has_gone_what_we_read(tmp_path: Path) -> None:
    """A library may change its words."""
    program = (
        "import os, sys, torch, torch.distributed as d\n"
        f"rank = int(sys.argv[1]); d.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=rank,"
        " world_size=2)\n"
        "d.barrier()\n"
        "if rank: os._exit(3)\n"
        "try:\n"
        "    for _ in range(1000): d.all_reduce(torch.ones(1))\n"
        "except RuntimeError as error:\n"
        "    from mim4dd_pl.app.processes import parted\n"
        "    os._exit(parted(error) or 1)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, rank], stderr=subprocess.PIPE) for rank in "01"]
    said, _ = (process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [LOST_PEER, 3]
    assert said.decode().endswith("mim4dd: error: Another process of the run has ended.\n")


@pytest.mark.parametrize(("code", "seconds"), [(4, 0), (0, 1)])
def test_who_fails_among_others_takes_no_leave_of_them(code: int, seconds: int, tmp_path: Path) -> None:
    program = (
        "import atexit, time, torch.distributed as d; from mim4dd_pl.app.processes import leave\n"
        f"d.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)\n"
        "atexit.register(lambda: (time.sleep(1), print('leave taken')))\n"
        f"print('said'); leave({code})"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (code, "said\nleave taken\n" if seconds else "said\n")


@pytest.mark.parametrize(
    ("environment", "asked", "started"),
    [
        ({}, 1, None),
        ({}, 4, None),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 4, None),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 1, 2),
        ({"WORLD_SIZE": "2"}, 1, None),  # a cluster's, of jobs
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, 8, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, 1, 8),
        ({"SLURM_NTASKS": "8"}, 1, None),  # one process in a job that may hold eight
        ({"SLURM_NTASKS": "1"}, 4, 1),
    ],
)
def test_started_processes_are_those_of_the_run(
    environment: dict[str, str], asked: int, started: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "os", SimpleNamespace(environ=environment))
    if started is None:
        check_started(asked)
    else:
        with pytest.raises(UserError, match=f"devices is {asked}, and {started} processes have been started"):
            check_started(asked)


def test_a_traceback_ends_a_process_with_1() -> None:
    program = (
        "import mim4dd_pl.app.cli as cli, mim4dd_pl.__main__ as program\n"
        "def main(): raise KeyError('a bug of ours')\n"
        "cli.main = main; program.run()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("KeyError: 'a bug of ours'\n")


NETWORK = """
from mim4dd_pl.networks.convnet import ConvNet


class MyNetwork(ConvNet):
    pass
"""


def test_a_class_in_the_working_folder_is_found_and_no_library_is_hidden_by_a_file_there(tmp_path: Path) -> None:
    """Of the console script, which lies in another folder."""
    here, script = tmp_path / "here", tmp_path / "bin/mim4dd"
    for folder in (here, script.parent):
        folder.mkdir()
    script.write_text("from mim4dd_pl.__main__ import run; run()")
    (here / "my_file.py").write_text(NETWORK)
    for name in ("yaml", "lightning", "traceback"):
        (here / f"{name}.py").write_text("raise ImportError('of the working folder')")
    (here / "my.yaml").write_text("model: {init_args: {network: {class_path: my_file.MyNetwork}}}")
    recipes = ["-c", str(CONFIGS / "experts/digits.yaml"), "-c", "my.yaml"]
    settings = ["--model.experts.num_experts=1", "--model.experts.training.epochs=1", "--trainer.accelerator=cpu"]
    program = [sys.executable, str(script), "fit", *recipes, *settings]
    ended = subprocess.run(
        program, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "MyNetwork" in (here / "checkpoints/experts/digits/manifest.json").read_text()
