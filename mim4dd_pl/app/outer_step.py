"""An outer step, from a few of its inner steps: minutes and memory."""

import copy
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from mim4dd_pl.app.timing import patience, seconds
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.derivatives import Work
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.objectives.base import Objective, Scene
from mim4dd_pl.population.training import at_once
from mim4dd_pl.stored.trajectories import Segment


class _Measured(NamedTuple):
    """A step of a shortened host: its work, its seconds, and the GiB that it keeps of the forward pass."""

    work: Work
    seconds: float
    saved: float


def outer_steps(module: DistillationModule, data: ImageDataModule, steps: int) -> tuple[float, float]:
    """Minutes of all outer steps, and GiB by which the inner steps that were not run will raise the peak.

    Extrapolated from one and three inner steps.
    """
    module.real = data.train.to(module.device)
    module.derivatives = module.choose_derivatives(steps)
    if module.objective.reads_experts:
        module.segments = _MadeUpSegments(module)  # type: ignore[assignment]
    work = _work(module, module.objective)
    size = _batch_size(module, work)
    few = _measured(module, module.objective.shortened(1, size), patience(module.derivatives))
    more = _measured(module, module.objective.shortened(3, size), 0.0)
    slope = max(more.seconds - few.seconds, 0.0) / max(more.work.passes - few.work.passes, 1)
    per_step = (more.saved - few.saved) / max(more.work.sweeps - few.work.sweeps, 1)
    second = more.seconds + slope * (work.passes - more.work.passes)
    return steps * second / 60, per_step * (work.sweeps - more.work.sweeps)


def _work(module: DistillationModule, objective: Objective) -> Work:
    return objective.work(module.synthetic.decoded_per_class, module.network.num_classes)


def _batch_size(module: DistillationModule, work: Work) -> int:
    """Images of a measured inner step: those that are computed together, if the steps are more than are measured."""
    short = work.one_graph or _work(module, module.objective.shortened(3, work.batch_size)) == work
    return work.batch_size if short else module.derivatives.chunk(work.batch_size, module.device)


def _measured(module: DistillationModule, objective: Objective, patience: float) -> _Measured:
    module = copy.copy(module)
    module.objective = objective
    # In this order: the first step compiles, which it cannot while saved tensors are watched.
    took = seconds(lambda: module.mean_gradients(0), patience)
    return _Measured(_work(module, objective), took, _saved_for_backward(module))


@dataclass(eq=False)
class _Packed:
    """A tensor that a graph keeps, for as long as it does."""

    tensor: Tensor


def _saved_for_backward(module: DistillationModule) -> float:
    """GiB that the host keeps of a forward pass: what grows with the number of inner steps."""
    kept = WeakSet[_Packed]()

    def pack(tensor: Tensor) -> _Packed:
        kept.add(packed := _Packed(tensor))
        return packed

    count = min(module.segments_per_step, at_once(module.device))
    segments = None
    if module.segments is not None:
        segments = Segment(*(row.to(module.device).expand(count, -1) for row in module.segments.read(0, 0)))
    scene = Scene(Stream(0), [Stream(number) for number in range(count)], module.real, segments)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        match = module.objective(module.derivatives, module.synthetic.decoded(), scene)
    storages = [packed.tensor.untyped_storage() for packed in kept]
    del match  # not before: its graph keeps them
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**30


class _MadeUpSegments:
    """Segments for measuring without experts: two initialisations."""

    def __init__(self, module: DistillationModule) -> None:
        self._segment = Segment(*(module.network.initial(Stream(number)) for number in range(2)))

    def read(self, step: int, index: int) -> Segment:
        return self._segment
