"""Several processes as one program: started together, asked to stop together, ended together.

Lightning starts a process per device too, but one of them is then parent of the others, and a death among them ends
the program with SIGKILL and without a word. Here the parent computes nothing, so it can always answer.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, NoReturn

import torch

from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.terminal import fail, stopped

GRACE = 10.0
"""Seconds that processes have to end by themselves when one of them has ended badly."""

LOST_PEER = 255
"""Exit code of a process that another one has left, which tells nothing of the reason."""

_LOST = "Another process of the run has ended."
_GONE = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe")
_PARENT = "MIM4DD_PARENT"
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Launch(Exception):
    """Asks for processes that nobody has started.

    Args:
        count: How many, on this node.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class _Ended(NamedTuple):
    process: int
    code: int


def check_started(asked: int) -> None:
    """Refuse to be one of more or fewer processes than a run has, where torchrun or srun has started them.

    Args:
        asked: Processes of the run, on all nodes.

    Raises:
        UserError: With both numbers.
    """
    variable = "WORLD_SIZE" if "LOCAL_RANK" in os.environ else "SLURM_STEP_NUM_TASKS"
    if asked > 1 and variable not in os.environ:
        variable = "SLURM_NTASKS"  # of the job
    if (started := int(os.environ.get(variable, asked))) != asked:
        raise UserError(
            f"trainer.num_nodes x trainer.devices is {asked}, and {started} processes have been started ({variable}): "
            "make them agree (docs/cluster.md)."
        )


def run_all(arguments: Sequence[str], launch: Launch) -> int:
    """Run the program with ``arguments`` in each process, and forward signals to them.

    Returns:
        0, or the exit code of the process that failed first, the others being ended too; of one that was killed by
        signal n, 128 + n.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with _signals() as received:
        try:
            for environment in _environments(launch.count):
                command = [sys.executable, "-m", "mim4dd_pl", *arguments]
                # A session of its own: Ctrl-C is this process's, which passes it on once.
                processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            failed = _wait(processes, received)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
    if failed is None:
        return 0
    if failed.code == LOST_PEER:
        return fail(_LOST, LOST_PEER)
    if failed.code > 0:
        return failed.code
    number = -failed.code
    if number in received:  # before it was ready to answer, or once too often
        return stopped(number)
    remedy = "a run that has a checkpoint goes on with --ckpt_path last"
    fail(f"Process {failed.process} was killed by {signal.Signals(number).name}; {remedy}.", LOST_PEER)
    return 128 + number


def _wait(processes: Sequence["subprocess.Popen[bytes]"], received: list[int]) -> _Ended | None:
    """Wait for all; tells of the one that failed first, and has others fail.

    Once one has failed, or a second signal asks them to stop, they have GRACE seconds left; a third leaves them none.
    """
    forwarded, causes, deadline = 0, list[_Ended](), float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        for number in received[forwarded:]:
            forwarded += 1
            for process in processes:
                process.send_signal(number)
            if forwarded > 1:
                deadline = time.monotonic() + (GRACE if forwarded == 2 else 0)
        time.sleep(0.05)
        if failed := _failed(processes):
            deadline = min(deadline, time.monotonic() + GRACE)
            causes = causes or [ended for ended in failed if ended.code != LOST_PEER]
    if failed := causes or _failed(processes):
        return min(failed, key=lambda ended: ended.code)  # one that was killed takes others with it: below zero first
    unwilling = [_Ended(number, -received[-1]) for number, process in enumerate(processes) if process.poll() is None]
    return next(iter(unwilling), None)


def _failed(processes: Sequence["subprocess.Popen[bytes]"]) -> list[_Ended]:
    return [_Ended(number, code) for number, process in enumerate(processes) if (code := process.poll())]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of the signals that this process receives while the block runs, in their order."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environments(count: int) -> Iterator[dict[str, str]]:
    """What tells each process who it is, as torchrun would."""
    common = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        **os.environ,
        # Whatever a cluster says of them, nobody else is to join.
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        _PARENT: str(os.getpid()),
    }
    for number in range(count):
        yield {**common, "LOCAL_RANK": str(number), "RANK": str(number)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_with_parent() -> None:
    """In a process of :func:`run_all`: end when the parent is gone, whatever it died of."""
    parent = int(os.environ.get(_PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(128 + signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True, name="parent").start()


def parted(error: RuntimeError) -> int | None:
    """Say what keeps processes from working together; returns the exit code, None if the error is about another thing.

    Of a process that has gone its parent knows the reason, and says it.
    """
    reason = str(error).strip().partition("\n")[0]
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in reason:  # which has no class for it
        return None
    if any(word in reason for word in _GONE):
        return LOST_PEER if _PARENT in os.environ else fail(_LOST, LOST_PEER)
    if "timed out" in reason.lower():
        remedy = "see what the others do, or give them more time in trainer.strategy.timeout (docs/cluster.md)"
        return fail(f"Another process has not answered: {remedy}. {reason}", UserError.exit_code)
    return fail(f"The processes cannot work together: {reason}", UserError.exit_code)


def leave(code: int) -> NoReturn:
    """End this process: with an error at once, as NCCL would wait for an answer of the others to its farewell."""
    if code and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
