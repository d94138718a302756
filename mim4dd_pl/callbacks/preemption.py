"""What a fit does when it is asked to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from mim4dd_pl.basics.errors import Stopped
from mim4dd_pl.callbacks.checkpoint import LastCheckpoint
from mim4dd_pl.modules.lightning import validation_follows


class Preemption(Checkpoint):
    """Answers Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning): finishes the outer step, keeps it, ends the run.

    While experts or students are trained the run ends at once: finished experts are kept, and :class:`LastCheckpoint`
    has kept the steps. A second signal ends it at once everywhere, and so does a first one in a run without
    LastCheckpoint, where this is no callback of the Trainer. It is a Checkpoint so that Lightning calls it last.

    Of several processes one that is asked suffices: they agree after every step.

    Raises:
        Stopped: In the main thread, with the number of the signal.
    """

    def __init__(self) -> None:
        self._stepping = False
        self._received = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if not self._stepping or self._received:
            raise Stopped(number)
        self._received = number

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stepping = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if number := self._agreed(trainer):
            if trainer.global_step < trainer.max_steps:
                LastCheckpoint.save(trainer)
            raise Stopped(number)
        self._stepping = not validation_follows(trainer)
        self._stop_unless_stepping()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stepping = trainer.state.fn == "fit"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stepping = False
        self._stop_unless_stepping()

    def _agreed(self, trainer: L.Trainer) -> int:
        """The highest number that a process has received, 0 for none."""
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _stop_unless_stepping(self) -> None:
        """Of a signal since the processes agreed to go on."""
        if self._received and not self._stepping:
            raise Stopped(self._received)


@contextmanager
def answering_signals() -> Iterator[Preemption]:
    """A callback that receives this process's signals while the block runs."""
    preemption = Preemption()
    # Only the main thread may set handlers: elsewhere, as in a server, signals stay the caller's.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if current_thread() is main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell has it for a job in the background
            signal.signal(number, preemption.receive)
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
