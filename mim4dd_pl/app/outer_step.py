"""An outer step, from a few of its inner steps: minutes and memory."""

import copy
from weakref import WeakSet

import torch
from torch import Tensor

from mim4dd_pl.app.timing import patience, seconds
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.derivatives import Work
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.objectives.base import Objective, Scene
from mim4dd_pl.objectives.performance_matching import PerformanceMatching
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.population.training import at_once
from mim4dd_pl.stored.trajectories import Segment


def outer_steps(module: DistillationModule, data: ImageDataModule, steps: int) -> tuple[float, float]:
    """Minutes of all outer steps, and GiB by which the inner steps that were not run will raise the peak.

    Extrapolated from one and three inner steps.
    """
    module.real = data.train.to(module.device)
    module.derivatives = module.choose_derivatives(steps)
    if module.objective.epochs is not None:
        module.segments = _MadeUpSegments(module)  # type: ignore[assignment]
    whole, work = module.objective, _work(module)
    measured, saved, works = [], [], []
    for count, cold in ((1, patience(module.derivatives)), (3, 0.0)):
        module.objective = _shortened(module, whole, count)
        saved.append(_saved_for_backward(module))
        measured.append(seconds(lambda: module.mean_gradients(0), cold))
        works.append(_work(module))
        module.objective = whole
    few, more, whole_step = map(_passes, (*works, work))
    second = measured[1] + (whole_step - more) / max(more - few, 1) * max(measured[1] - measured[0], 0.0)
    growth = (saved[1] - saved[0]) / max(works[1].sweeps - works[0].sweeps, 1) * (work.sweeps - works[1].sweeps)
    return steps * second / 60, growth


def _shortened(module: DistillationModule, whole: Objective, steps: int) -> Objective:
    """The objective with so many inner steps at most; each on what the device computes together, if there are more."""
    short = copy.copy(whole)
    short.unroll_steps = min(steps, whole.unroll_steps)
    if not isinstance(short, TrajectoryMatching | PerformanceMatching) or isinstance(short.unroll, FullGraphUnroll):
        return short
    smaller = copy.copy(short)
    smaller.synthetic_batch_size = module.derivatives.chunk(_work(module).batch_size, module.device)
    try:
        smaller.check(module.synthetic.images_per_class, module.network.num_classes)
    except ValueError:
        return short
    return smaller if whole.unroll_steps > 3 else short


def _work(module: DistillationModule) -> Work:
    """Of one segment; a full graph, which asks the derivatives for nothing, does as much on its own."""
    objective = copy.copy(module.objective)
    if isinstance(objective, TrajectoryMatching | PerformanceMatching):
        objective.unroll = ExactUnroll()
    return objective.work(module.synthetic.images_per_class, module.network.num_classes)


def _passes(work: Work) -> int:
    """Images that go forward, three for a gradient and eight for a sweep, as :meth:`Work.seconds` has it."""
    return work.batch_size * (3 * work.gradients + 8 * work.sweeps)


class _Packed:
    """A tensor that a graph keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


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
    scene = Scene(module.real, segments, Stream(0), [Stream(number) for number in range(count)])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        match = module.objective(module.derivatives, module.synthetic, scene)
    storages = [packed.tensor.untyped_storage() for packed in kept]
    del match  # not before: its graph keeps them
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**30


class _MadeUpSegments:
    """Segments for measuring without experts: two initialisations."""

    def __init__(self, module: DistillationModule) -> None:
        self._segment = Segment(*(module.network.initial(Stream(number)) for number in range(2)))

    def read(self, step: int, index: int) -> Segment:
        return self._segment
