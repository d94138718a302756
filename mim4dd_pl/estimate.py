"""What a run will take, from a few measured steps of each of its parts: minutes, memory, disk.

Every part is run for a third of a second as the run itself would do it, and multiplied. Compiling takes minutes, so
plain steps are measured unless compiled ones are asked for (which the run then finds in the compiler's cache): where
the run compiles, plain minutes are an upper bound. Nothing is written but decoded images.
"""

import copy
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from mim4dd_pl.callbacks import Analysis, ClosingTable, Diagnostics, Evaluation
from mim4dd_pl.data import ImageDataModule, ImageSet, Indexable, InMemory
from mim4dd_pl.derivatives import CompiledDerivatives, Derivatives, Work
from mim4dd_pl.embedding import tsne
from mim4dd_pl.evaluation import Classifiers
from mim4dd_pl.files import nearest_existing
from mim4dd_pl.machine import free_memory, peak_memory
from mim4dd_pl.modules import DistillationModule, ExpertModule
from mim4dd_pl.neighbours import nearest
from mim4dd_pl.objectives import Scene
from mim4dd_pl.population import Experts, Training, at_once, train
from mim4dd_pl.randomness import Stream
from mim4dd_pl.trajectories import Segment

_MEASURED_SECONDS = 0.3


_SPARE = 0.01  # GiB beside a run's images and states: curves, pictures, tables


class Estimate(NamedTuple):
    """Minutes by stage; peak memory of the process (or of the CUDA device), new experts and the run's files, in GiB."""

    minutes: dict[str, float]
    memory: float
    experts: float
    run: float = 0.0
    compiles: bool = False


def estimate(trainer: L.Trainer, module: L.LightningModule, data: ImageDataModule, compiled: bool) -> Estimate:
    """Measure a few steps of every stage that ``fit`` would run.

    Args:
        trainer: With the callbacks of the recipe.
        module: Attached to ``data``.
        data: Set up.
        compiled: Measure compiled steps where the run compiles.
    """
    device = trainer.strategy.root_device
    module.to(device)
    if not isinstance(module, DistillationModule | ExpertModule):
        raise TypeError(f"Expected a DistillationModule or an ExpertModule, got {type(module).__name__}.")
    compiles = not compiled and _compiles(trainer, module, data)
    if not compiled:
        module.compiles = False
    if isinstance(module, ExpertModule):
        minutes, disk = _experts(module, module.experts, data, device)
        return Estimate({"experts": minutes}, peak_memory(device), disk, compiles=compiles)
    module.trainer = trainer
    minutes, disk = _experts(module, module.experts, data, device) if module.needs_experts else (0.0, 0.0)
    stages = {"experts": minutes}
    stages["distillation"], growth = _outer_steps(module, data, trainer.max_steps)
    memory = peak_memory(device) + growth
    images = 4 * module.synthetic.images.numel()
    heads = 0 if module.information is None else sum(part.numel() for part in module.information.parameters())
    # A checkpoint holds images and momentum, heads and Adam's two moments; an artefact has previews. Best and last of
    # both, and the one that is being replaced.
    run = 3 * (2 * images + 12 * heads + 1.5 * images) / 2**30 + _SPARE
    if (whitening := data.train.normalization.whitening) is not None:
        run += 3 * whitening.matrix.nbytes / 2**30
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation):
            stages |= _evaluation(trainer, module, data, callback)
    return Estimate(stages, max(memory, peak_memory(device)), disk, run, compiles)


def show(expected: Estimate, device: torch.device, folder: Path, processes: int = 1) -> None:
    """Print the estimate beside what ``device`` and the disk of ``folder`` have; say where memory will be short."""
    for stage, minutes in expected.minutes.items():
        print(f"{stage:<14} {minutes:8.1f} min")
    print(f"{'in all':<14} {sum(expected.minutes.values()):8.1f} min")
    if processes > 1:
        print(f"{processes} processes share this: with a device each they take about 1/{processes} of the minutes.")
    if expected.compiles:
        print("The run compiles its steps and takes less than these minutes; --compiled true measures how much less.")
    disk = shutil.disk_usage(nearest_existing(folder)).free / 2**30
    memory = free_memory(device)
    print(f"{'memory':<14} {1024 * expected.memory:8.0f} MiB of {1024 * memory:.0f} free")
    print(f"{'disk':<14} {1024 * (expected.experts + expected.run):8.0f} MiB of {1024 * disk:.0f} free")
    if expected.memory > memory:
        print(
            "This is more memory than there is: lower model.objective.synthetic_batch_size, "
            "model.objective.unroll_steps or model.segments_per_step, or end other programs."
        )


def _compiles(trainer: L.Trainer, module: DistillationModule | ExpertModule, data: ImageDataModule) -> bool:
    """Whether the run compiles what it spends most of its time in."""
    if isinstance(module, ExpertModule):
        device = trainer.strategy.root_device
        engine = module.experts.derivatives(module.network, data.train, module.compiles, device)
    else:
        engine = copy.copy(module).choose_derivatives(trainer.max_steps)  # of a copy, which may keep its decision
    return isinstance(engine, CompiledDerivatives)


def _experts(
    module: DistillationModule | ExpertModule, experts: Experts, data: ImageDataModule, device: torch.device
) -> tuple[float, float]:
    """Minutes and GiB of the experts that are missing."""
    missing = len(experts.missing(module.store))
    if not missing:
        return 0.0, 0.0
    images = data.train.to(device)
    engine = experts.derivatives(module.network, images, module.compiles, device)
    networks = min(missing, at_once(device))
    step = _training_step(engine, images, experts.training, networks)
    validation = _classification(engine, data.validation.to(device), data.evaluation_batch_size) * len(data.validation)
    seconds = missing * (experts.training.steps(len(images)) * step + validation)
    size = 4 if experts.storage == "float32" else 2
    rows = experts.training.epochs + 1
    return seconds / 60, missing * rows * module.network.num_parameters * size / 2**30


def _outer_steps(module: DistillationModule, data: ImageDataModule, steps: int) -> tuple[float, float]:
    """Minutes of all outer steps, and GiB by which the inner steps that were not run will raise the peak."""
    module.real = data.train.to(module.device)
    module.derivatives = module.choose_derivatives(steps)
    if module.objective.epochs is not None:
        module.segments = _MadeUpSegments(module)  # type: ignore[assignment]
    whole = module.objective
    seconds, saved, work = [], [], []
    for count in (min(2, whole.unroll_steps), min(6, whole.unroll_steps)):
        module.objective = copy.copy(whole)
        module.objective.unroll_steps = count
        seconds.append(_seconds(lambda: module.mean_gradients(0)))
        saved.append(_saved_for_backward(module))
        work.append(_work(module))
    module.objective = whole
    left, sweeps = _work(module).seconds(module.network), _work(module).sweeps
    few, more = (part.seconds(module.network) for part in work)
    second = seconds[1] + (left - more) / max(more - few, 1e-9) * max(seconds[1] - seconds[0], 0.0)
    growth = (saved[1] - saved[0]) / max(work[1].sweeps - work[0].sweeps, 1) * (sweeps - work[1].sweeps)
    return steps * second / 60, growth


def _work(module: DistillationModule) -> Work:
    return module.objective.work(module.synthetic.images_per_class, module.network.num_classes)


def _saved_for_backward(module: DistillationModule) -> float:
    """GiB that the host keeps of a forward pass: what grows with the number of inner steps."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    count = min(module.segments_per_step, at_once(module.device))
    segments = None
    if module.segments is not None:
        segments = Segment(*(row.to(module.device).expand(count, -1) for row in module.segments.read(0, 0)))
    scene = Scene(module.real, segments, Stream(0), [Stream(number) for number in range(count)])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.objective(module.derivatives, module.synthetic, scene)
    return sum(storages.values()) / 2**30


def _evaluation(
    trainer: L.Trainer, module: DistillationModule, data: ImageDataModule, evaluation: Evaluation
) -> dict[str, float]:
    """Minutes of the evaluations during the run, of the closing table, and of the analysis."""
    device, training, network = module.device, evaluation.training, module.network
    classification = _classification(Derivatives(network), data.test.to(device), data.evaluation_batch_size)
    synthetic = InMemory(module.synthetic.result, module.synthetic.targets.detach())

    def students(images: Indexable, training: Training, times: int) -> float:
        """Seconds to train the students of one row and, where their learning rate is searched, to choose it."""
        engine = evaluation.derivatives_for(module, network, len(images), training, times)
        step = _training_step(engine, images, training, min(evaluation.num_students, at_once(device)))
        seconds = evaluation.num_students * training.steps(len(images)) * step
        searched = len(evaluation.candidates()) if training is evaluation.training else 1
        return seconds if searched == 1 else searched * (seconds + classified(data.validation))

    def classified(images: ImageSet) -> float:
        """Seconds in which the students of one row classify ``images``."""
        return evaluation.num_students * len(images) * classification

    row, test = students(synthetic, training, evaluation.times(trainer)), classified(data.test)
    validation = row + classified(data.validation)
    during = validation * (trainer.max_steps // int(trainer.val_check_interval))
    closing = analysis = 0.0
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Diagnostics) and callback.baseline and data.validate_on != "test":
            during += validation
        elif isinstance(callback, Analysis):
            analysis += 2 * row / evaluation.num_students + _looks(module, data, callback)
        elif isinstance(callback, ClosingTable):
            # Best, last, random real images with their classes and with an expert's labels; soft labels made hard.
            closing += (5 if module.soft_labels is not None else 4) * (row + test)
            if callback.whole_set is not None:
                closing += students(data.train.to(device), callback.whole_set, 1) + test
    minutes = {"evaluation": during / 60, "closing table": closing / 60}
    return {**minutes, "analysis": analysis / 60} if analysis else minutes


def _looks(module: DistillationModule, data: ImageDataModule, analysis: Analysis) -> float:
    """Seconds of what an analysis does beside training students: t-SNE of each layer, and the nearest real images.

    t-SNE takes a little more than its share of points.
    """
    layers, few = module.network.num_layers if analysis.tsne else 0, 100
    generator = Stream(0).generator()
    plane = _seconds(lambda: tsne(torch.randn(few, 50, generator=generator), Stream(0)))
    size = data.train.images[0].numel()
    real = torch.rand(1000, size, generator=generator)
    queries = torch.rand(len(module.synthetic) + 2000, size, generator=generator)
    own = torch.full((len(queries),), -1)
    search = _seconds(lambda: nearest(queries, own, [real])) * len(data.train) / len(real)
    return layers * plane * analysis.real_images / few + search


class _MadeUpSegments:
    """Segments for measuring without experts: two initialisations."""

    def __init__(self, module: DistillationModule) -> None:
        self._segment = Segment(*(module.network.initial(Stream(number)) for number in range(2)))

    def read(self, step: int, index: int) -> Segment:
        return self._segment


def _training_step(engine: Derivatives, images: Indexable, training: Training, networks: int) -> float:
    """Seconds of one step of one network."""
    device = torch.device("cpu")
    few: Indexable = images
    if isinstance(images, ImageSet):
        device = images.labels.device
        count = min(len(images), 4 * training.batch_size)
        few = replace(images, rows=images.rows[:count], labels=images.labels[:count])
    elif isinstance(images, InMemory):
        device = images.images.device
    streams = [Stream(number) for number in range(networks)]
    theta = torch.stack([engine.network.initial(stream) for stream in streams]).to(device)
    short = replace(training, epochs=max(1, 8 * training.epochs // training.steps(len(few))))
    steps = networks * short.steps(len(few))
    return _seconds(lambda: deque(train(engine, theta, [few] * networks, short, streams), maxlen=0)) / steps


def _classification(engine: Derivatives, images: ImageSet, batch_size: int) -> float:
    """Seconds in which one network classifies one of ``images``."""
    batch = images.batch(torch.arange(min(batch_size, len(images)), device=images.labels.device))
    classifiers = Classifiers(engine.network, [engine.network.initial(Stream(0)).to(images.labels.device)])
    return _seconds(lambda: classifiers.update(batch)) / len(batch.labels)


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of one run: after a first one, unless that took long, the mean over those that fit into the time."""
    started = time.perf_counter()
    run()
    if (first := time.perf_counter() - started) > 10 * _MEASURED_SECONDS and not torch.cuda.is_initialized():
        return first
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _MEASURED_SECONDS:
        run()
        _finish()
        count += 1
    return (time.perf_counter() - started) / count


def _finish() -> None:
    """Wait for the accelerator, which works behind the program."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
