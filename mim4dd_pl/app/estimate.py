"""What a run will take, from measured parts of it: minutes, memory, disk.

Compiling takes minutes, so plain steps are measured unless compiled ones are asked for (which the run then finds in the
compiler's cache): where the run compiles, plain minutes are an upper bound. Nothing is written but decoded images.
"""

import copy
import shutil
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch

from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.analysis.embedding import tsne
from mim4dd_pl.analysis.neighbours import nearest
from mim4dd_pl.app.outer_step import outer_steps
from mim4dd_pl.app.timing import classification, seconds, training_step
from mim4dd_pl.basics.files import nearest_existing
from mim4dd_pl.basics.machine import free_memory, peak_memory
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.data.sets import Indexable, InMemory
from mim4dd_pl.diagnostics.callback import Diagnostics
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.experts import ExpertModule
from mim4dd_pl.modules.lightning import callbacks_of
from mim4dd_pl.population.evaluator import Evaluator
from mim4dd_pl.population.training import Training, at_once

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
    look = classification(module.network, data.test.to(device), data.evaluation_batch_size)
    if isinstance(module, ExpertModule):
        minutes, disk = _experts(module, data, look)
        return Estimate({"experts": minutes}, peak_memory(device), disk, compiles=compiles)
    module.trainer = trainer
    minutes, disk = _experts(module, data, look) if module.needs_experts else (0.0, 0.0)
    outer, growth = outer_steps(module, data, trainer.max_steps)
    stages, memory = {"experts": minutes, "distillation": outer}, peak_memory(device) + growth
    images = 4 * module.synthetic.images.numel()
    heads = 0 if module.information is None else sum(part.numel() for part in module.information.parameters())
    # A checkpoint holds images and momentum, heads and Adam's two moments; an artefact has previews. Best and last of
    # both, and the one that is being replaced.
    run = 3 * (2 * images + 12 * heads + 1.5 * images) / 2**30 + _SPARE
    if (whitening := data.train.normalization.whitening) is not None:
        run += 3 * whitening.matrix.nbytes / 2**30
    for evaluation in callbacks_of(trainer, Evaluation):
        stages |= _evaluation(trainer, module, data, evaluation, look)
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


def _experts(module: DistillationModule | ExpertModule, data: ImageDataModule, look: float) -> tuple[float, float]:
    """Minutes and GiB of the experts that are missing; ``look`` seconds to classify an image."""
    experts, device = module.experts, module.device
    missing = len(experts.missing(module.store))
    if not missing:
        return 0.0, 0.0
    images = data.train.to(device)
    engine = experts.derivatives(getattr(module, "trained_network", module.network), images, module.compiles, device)
    networks = min(missing, at_once(device))
    step = training_step(engine, images, experts.training, networks)
    spent = missing * (experts.training.steps(len(images)) * step + len(data.validation) * look)
    row = module.network.num_parameters * (4 if experts.storage == "float32" else 2)
    return spent / 60, missing * (experts.training.epochs + 1) * row / 2**30


class _Rows:
    """Seconds of the rows of a table: K students are trained on a set, and classify images in ``look`` seconds each."""

    def __init__(self, evaluator: Evaluator, data: ImageDataModule, look: float) -> None:
        self.evaluator = evaluator
        self.students = evaluator.protocol.num_students
        self.validation, self.test = (self.students * len(images) * look for images in (data.validation, data.test))

    def trained(self, images: Indexable, training: Training | None = None) -> float:
        """Students of one row; of a search among learning rates with the choice."""
        engine, recipe = self.evaluator.derivatives(len(images), training), training or self.evaluator.protocol.training
        step = training_step(engine, images, recipe, min(self.students, at_once(self.evaluator.device)))
        once = self.students * recipe.steps(len(images)) * step
        candidates = 1 if training else len(self.evaluator.protocol.candidates())
        return once if candidates == 1 else candidates * (once + self.validation)


def _evaluation(
    trainer: L.Trainer, module: DistillationModule, data: ImageDataModule, evaluation: Evaluation, look: float
) -> dict[str, float]:
    """Minutes of the evaluations during the run, of the closing table, and of the analysis."""
    evaluation.attach(trainer, module, data)
    rows, during = (_Rows(each, data, look) for each in (evaluation.evaluator, evaluation.validator))
    decoded = module.synthetic.decoded()
    synthetic = InMemory(decoded.images.detach(), decoded.targets.detach())
    row, validation = rows.trained(synthetic), during.trained(synthetic) + during.validation
    validations = trainer.max_steps // int(trainer.val_check_interval)
    closing = analysis = 0.0
    for callback in callbacks_of(trainer, L.Callback):
        if isinstance(callback, Diagnostics) and callback.baseline and data.validate_on != "test":
            validations += 1
        elif isinstance(callback, Analysis):
            analysis += 2 * row / rows.students + _looks(module, data, callback)
        elif isinstance(callback, ClosingTable):
            # Best, last, random real images with their classes and with an expert's labels; soft labels made hard, and
            # canvases of real images.
            count = 4 + (module.soft_labels is not None) + (module.synthetic.formation > 1)
            closing += count * (row + rows.test)
            if callback.whole_set is not None:
                closing += rows.trained(data.train.to(module.device), callback.whole_set) + rows.test
    minutes = {"evaluation": validations * validation / 60, "closing table": closing / 60}
    return {**minutes, "analysis": analysis / 60} if analysis else minutes


def _looks(module: DistillationModule, data: ImageDataModule, analysis: Analysis) -> float:
    """Seconds of what an analysis does beside training students: t-SNE of each layer, and the nearest real images.

    t-SNE takes a little more than its share of points.
    """
    maps, few = len(module.network.layer_shapes()) if analysis.tsne else 0, 100
    generator = Stream(0).generator()
    plane = seconds(lambda: tsne(torch.randn(few, 50, generator=generator), Stream(0)))
    size = data.train.images[0].numel()
    real = torch.rand(1000, size, generator=generator)
    queries = torch.rand(len(module.synthetic.decoded().labels) + 2000, size, generator=generator)
    own = torch.full((len(queries),), -1)
    search = seconds(lambda: nearest(queries, own, [real])) * len(data.train) / len(real)
    return maps * plane * analysis.real_images / few + search
