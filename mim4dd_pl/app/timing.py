"""How long the parts of a run take on this machine: each is run a few times as the run itself would do it.

On a CPU large minibatches are computed in chunks one after another
(:meth:`~mim4dd_pl.engine.derivatives.Derivatives.chunk`), so one chunk is measured and multiplied.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import ImageSet, Indexable, InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.population.students import Classifiers
from mim4dd_pl.population.training import Training, train

MEASURED_SECONDS = 0.2

PATIENCE = 1.0


def seconds(run: Callable[[], object], patience: float = PATIENCE) -> float:
    """Seconds of one run: the mean over those that fit into the time, after a first one, which finds everything cold.

    Args:
        run: What is measured.
        patience: A first run that takes longer counts, and is the only one; never on an accelerator, which it wakes.
    """
    started = time.perf_counter()
    run()
    first = time.perf_counter() - started
    if first > patience and not torch.cuda.is_initialized():
        return first
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURED_SECONDS:
        run()
        _finish()
        count += 1
    return (time.perf_counter() - started) / count


def patience(engine: Derivatives) -> float:
    """For a first run, which compiles where anything does."""
    return math.inf if isinstance(engine, CompiledDerivatives) else PATIENCE


def training_step(engine: Derivatives, images: Indexable, training: Training, networks: int) -> float:
    """Seconds of one step of one network, of so many that are trained at once."""
    batch_size = min(training.batch_size, len(images))
    device = _device(images)
    size = engine.chunk(batch_size, device)
    few = _first(images, size)
    short = replace(training, epochs=1, batch_size=size)
    streams = [Stream(number) for number in range(networks)]
    theta = torch.stack([engine.network.initial(stream) for stream in streams]).to(device)

    def epoch() -> None:
        deque(train(engine, theta, [few] * networks, short, streams), maxlen=0)

    return seconds(epoch, patience(engine)) / networks * batch_size / size


def classification(network: FlatNetwork, images: ImageSet, batch_size: int) -> float:
    """Seconds in which a network classifies one of ``images``."""
    device = images.labels.device
    batch = images.batch(torch.arange(min(batch_size, len(images)), device=device))
    classifiers = Classifiers(network, [network.initial(Stream(0)).to(device)])
    return seconds(lambda: classifiers.update(batch), PATIENCE / 2) / len(batch.labels)


def _device(images: Indexable) -> torch.device:
    if isinstance(images, ImageSet):
        return images.labels.device
    return images.images.device if isinstance(images, InMemory) else torch.device("cpu")


def _first(images: Indexable, count: int) -> Indexable:
    if isinstance(images, ImageSet):
        return replace(images, rows=images.rows[:count], labels=images.labels[:count])
    return InMemory(*images.batch(torch.arange(count, device=_device(images))))


def _finish() -> None:
    """Wait for the accelerator, which works behind the program."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
