"""One voice on the terminal: ours."""

import argparse
import logging
import os
import signal
import sys
import warnings
from typing import NoReturn

from mim4dd_pl.basics.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments of a command.

    Raises:
        UserError: Instead of printing the usage and leaving the program.
    """

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help)")


class _Printed(logging.Handler):
    """Log lines on the stdout of the moment, which a progress bar takes over to keep its own line whole."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


PARENT = "MIM4DD_PARENT"
"""Environment variable with the process that has started this one, and says for all of them why they end."""


def process() -> int:
    """The number of this process among those of a run, as torchrun, SLURM or this program counts them."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def quiet() -> None:
    """Let the libraries speak of errors only, and this package of what it does, in process 0."""
    if process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    # Accuracies that are logged are the same in all processes, which Lightning cannot know.
    warnings.filterwarnings(
        "ignore", message=r"It is recommended to use .self\.log\(.*sync_dist=True", category=UserWarning
    )
    # Lightning 2.6 with torch 2.14: a deprecation between the two that no user can mend.
    warnings.filterwarnings("ignore", message=r".isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    # torch.compile's own use of torch.jit, and its search for CUDA where there is none.
    warnings.filterwarnings("ignore", message=r".torch\.jit\.script. is deprecated", category=FutureWarning)
    # Pillow's, of a large picture: it is measured by ours (data/catalog.py).
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=RuntimeWarning)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    log = logging.getLogger("mim4dd_pl")
    log.handlers = [_Printed()]
    log.setLevel(logging.INFO)


def unheard() -> int:
    """Say no more, as whoever read the output has left (``| head``); returns the exit code of SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    return 128 + signal.SIGPIPE


def stopped(number: int, resumes: str = "a run that has a checkpoint goes on with --ckpt_path last") -> int:
    """Say that signal ``number`` has ended the program, and what ``resumes`` it; returns the exit code."""
    word, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
    if process() == 0 and PARENT not in os.environ:
        print(f"mim4dd: {word}; {resumes}", file=sys.stderr)
    return code


def fail(message: str, exit_code: int) -> int:
    """Print an error as one line on stderr, with the process if it is not the first; returns the exit code."""
    where = f" in process {process()}" if process() else ""
    print(f"mim4dd: error{where}: " + " ".join(message.split()), file=sys.stderr)
    return exit_code
