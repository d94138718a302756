"""Several processes as one program: started together, asked to stop together, ended together.

Lightning starts a process per device too, but one of them is then parent of the others, and a death among them ends
the program with SIGKILL and without a word. Here the parent computes nothing, so it can always answer, and torch's
elastic agent, which torchrun is made of, watches over them.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.utils.distributed import get_free_port

from mim4dd_pl.basics.errors import Stopped, UserError
from mim4dd_pl.basics.terminal import PARENT, fail, stopped

GRACE = 10
"""Seconds that processes have to end by themselves when they are asked a second time."""

LOST_PEER = 255
"""Exit code of a process that another one has left, which tells nothing of the reason."""

_LOST = "Another process of the run has ended."
_GONE = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe")
_FOLLOWS = (LOST_PEER, 128 + signal.SIGTERM, -signal.SIGTERM)
"""How a process ends because another one has."""


class Launch(Exception):
    """Asks for ``count`` processes on this node, which nobody has started."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def check_started(asked: int) -> None:
    """Refuse to be one of more or fewer processes than are ``asked`` on all nodes, where torchrun or srun starts them.

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


def run_all(arguments: Sequence[str], count: int) -> int:
    """Run the program with ``arguments`` in each of ``count`` processes on this node.

    A signal, which reaches this process as :class:`~mim4dd_pl.basics.errors.Stopped`, is passed on to all of them. The
    first is waited for, as they finish their step; after a second one they have GRACE seconds left, after a third none.

    Returns:
        0, or the exit code of the process that failed first, the others being ended too; of one that was killed by
        signal n, 128 + n.
    """
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # one line is ours
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # their handlers are ours
    program = dict.fromkeys(range(count), ("-m", "mim4dd_pl", *arguments))
    silent = DefaultLogsSpecs(os.devnull)
    processes = SubprocessContext("mim4dd", sys.executable, program, _environments(count), silent)
    asked, ended = list[int](), None
    try:
        processes.start()
        while ended is None:
            try:
                if asked:
                    patience = (sys.maxsize, GRACE, 0)[min(len(asked), 3) - 1]
                    processes.close(signal.Signals(asked[-1]), patience)
                ended = processes.wait(period=0.05)  # ends all by SIGTERM when one has failed
            except Stopped as stop:
                asked.append(stop.number)
    finally:
        processes.close(signal.SIGKILL)
    return _say_why({number: failure.exitcode for number, failure in ended.failures.items()}, asked)


def _say_why(failed: dict[int, int], asked: Sequence[int]) -> int:
    """Say in one line what no process could, of their exit codes and the signals passed on; returns that of the run."""
    if not failed:
        return 0
    causes = [process for process, code in failed.items() if code not in _FOLLOWS] or list(failed)
    process = min(causes, key=lambda process: failed[process] > 0)  # one that was killed takes others with it
    code = failed[process]
    if code > 0 and code not in (*_FOLLOWS, 130):
        return code  # the process has said why
    number = -code if code < 0 else code - 128
    if asked and (code > 0 or number in asked or len(asked) > 1):
        return stopped(asked[-1])
    if code == LOST_PEER:
        return fail(_LOST, LOST_PEER)
    if number in (signal.SIGINT, signal.SIGTERM):
        return stopped(number)
    remedy = "a run that has a checkpoint goes on with --ckpt_path last"
    fail(f"Process {process} was killed by {signal.Signals(number).name}; {remedy}.", LOST_PEER)
    return 128 + number


def _environments(count: int) -> dict[int, dict[str, str]]:
    """What tells each process who it is, as torchrun would."""
    common = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // count)),
        # Whatever a cluster says of them, nobody else is to join.
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        PARENT: str(os.getpid()),
    }
    return {number: {**common, "LOCAL_RANK": str(number), "RANK": str(number)} for number in range(count)}


def end_with_parent() -> None:
    """In a process of :func:`run_all`: end when the parent is gone, whatever it died of."""
    parent = int(os.environ.get(PARENT, 0))

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
        return LOST_PEER if PARENT in os.environ else fail(_LOST, LOST_PEER)
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
