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
from typing import NamedTuple

import torch

from mim4dd_pl.terminal import fail

GRACE = 10.0
"""Seconds that processes have to end by themselves when one of them has ended badly."""

LOST_PEER = 255
"""Exit code of a process that missed another one, which tells nothing of the reason."""

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
    if failed.code > 0:
        return failed.code
    number = -failed.code
    if number in received:  # before it was ready to answer
        return 130 if number == signal.SIGINT else 143
    remedy = "a run that has a checkpoint goes on with --ckpt_path last"
    fail(f"Process {failed.process} was killed by {signal.Signals(number).name}; {remedy}.", LOST_PEER)
    return 128 + number


def _wait(processes: Sequence["subprocess.Popen[bytes]"], received: list[int]) -> _Ended | None:
    """Wait for all; once one has failed, the others have GRACE seconds left. Tells of the one that failed first."""
    forwarded, failed, deadline = 0, list[_Ended](), float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        for number in received[forwarded:]:
            for process in processes:
                process.send_signal(number)
        forwarded = len(received)
        time.sleep(0.05)
        if not failed and (failed := _failed(processes)):
            deadline = time.monotonic() + GRACE
    # One that was killed takes others with it: below zero comes first, LOST_PEER last.
    return min(failed or _failed(processes), key=lambda ended: ended.code, default=None)


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


def lost_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone; gloo has no class for that."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
