"""The parent of several processes, and how each of them ends; here the program is a few lines."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mim4dd_pl.app import processes
from mim4dd_pl.app.processes import LOST_PEER, Launch, _Ended, _wait, check_started, parted, run_all
from mim4dd_pl.basics.errors import UserError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def spawned() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that do not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def spawn(spawned: list["subprocess.Popen[bytes]"], code: str) -> "subprocess.Popen[bytes]":
    spawned.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
    return spawned[-1]


def leaving(code: int, seconds: float = 0) -> str:
    return f"import os, time; time.sleep({seconds}); os._exit({code})"


def test_the_cause_is_told_and_not_what_it_led_to(spawned: list[Any]) -> None:
    programs = [leaving(LOST_PEER), leaving(4, 1), leaving(2, 2)]
    assert _wait([spawn(spawned, program) for program in programs], []) == _Ended(1, 4)


def test_who_does_not_end_with_the_others_is_left_to_be_killed(
    spawned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    assert _wait([spawn(spawned, STUBBORN), spawn(spawned, leaving(3))], []) == _Ended(1, 3)


def test_where_all_have_lost_each_other_that_is_told(spawned: list[Any]) -> None:
    assert _wait([spawn(spawned, leaving(LOST_PEER)) for _ in range(2)], []) == _Ended(0, LOST_PEER)


@pytest.mark.parametrize(("times", "seconds"), [(2, 1.0), (3, 0.0)], ids=["twice", "three times"])
def test_who_is_asked_repeatedly_is_waited_for_no_longer(
    times: int, seconds: float, spawned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 1.0)
    stubborn = spawn(spawned, STUBBORN)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()  # it hears no SIGTERM from now on
    begun = time.monotonic()
    assert _wait([stubborn], [signal.SIGTERM] * times) == _Ended(0, -signal.SIGTERM)
    assert seconds <= time.monotonic() - begun < seconds + 0.9
    assert stubborn.poll() is None  # run_all kills it


@pytest.mark.parametrize(
    ("ended", "code", "message"),
    [
        (None, 0, ""),
        (_Ended(1, 3), 3, ""),
        (_Ended(1, LOST_PEER), LOST_PEER, "mim4dd: error: Another process of the run has ended.\n"),
        (_Ended(1, -9), 137, "mim4dd: error: Process 1 was killed by SIGKILL; a run that has a checkpoint goes on"),
    ],
)
def test_the_parent_says_what_no_process_could(
    ended: _Ended | None, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_environments", lambda count: ())
    monkeypatch.setattr(processes, "_wait", lambda *_: ended)
    assert run_all([], Launch(2)) == code
    assert capsys.readouterr().err.startswith(message) if message else not capsys.readouterr().err


def test_the_parent_says_that_it_was_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(started: object, received: list[int]) -> _Ended:
        received.append(signal.SIGINT)
        return _Ended(0, -signal.SIGINT)

    monkeypatch.setattr(processes, "_environments", lambda count: ())
    monkeypatch.setattr(processes, "_wait", asked)
    assert run_all([], Launch(2)) == 130
    assert capsys.readouterr().err.startswith("mim4dd: interrupted; a run that has a checkpoint goes on")


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
