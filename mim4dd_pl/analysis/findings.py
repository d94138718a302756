"""What an analysis finds about a distilled set, in numbers, and what its figures show."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mim4dd_pl.analysis.features import Features, layer_similarity
from mim4dd_pl.analysis.neighbours import (
    Neighbours,
    find_neighbours,
    mean_overlap,
    mean_pairwise_distance,
    neighbour_overlap,
)
from mim4dd_pl.analysis.similarity import FEWEST
from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import data_of, find, random_sets
from mim4dd_pl.data.normalization import chunk_length
from mim4dd_pl.data.sets import ImageSet, InMemory
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.population.students import calibrated
from mim4dd_pl.stored.distilled import Distilled

_log = logging.getLogger(__name__)

MOST_CLASSES = 10
"""Classes that a figure shows, the first ones."""

_POOL = 3000
"""Real images whose features are looked at: a network takes far longer over an image than a comparison of pixels."""

_USUAL = 2000
"""Real images that say how far real images are from each other."""


def first_expert(module: DistillationModule) -> Features | None:
    """The first expert after its last epoch, trained on images as the set at hand is normalised; None without."""
    data, training = data_of(module), module.experts.training
    try:
        module.open_experts(data)
        if 0 not in module.store.finished or not data.normalizes_as_fitted:
            return None
        theta = module.store.segment(0, 0, training.epochs).target.to(module.device)
    except StoredFileError as error:
        _log.info("No expert for the analysis: %s", error)
        return None
    statistics = calibrated(module.network, theta, data.train.to(module.device), training.batch_size)
    return Features(module.network, theta, statistics)


def student_on(module: DistillationModule, images: InMemory, learned_lr: float | None = None) -> Features:
    """The first student of the run's evaluation, trained on ``images``."""
    students = find(module.trainer, Evaluation).evaluator.alone().train([images], learned_lr=learned_lr).classifiers
    return Features(students.network, students.parameters[0], students.statistics[0])


def compare_layers(
    module: DistillationModule,
    distilled: Distilled,
    expert: Features | None,
    student: Features,
    most: int,
    stream: Stream,
) -> dict[str, Tensor] | None:
    """CKA of an expert's layers with those of a student of the distilled set, and of as many random real images.

    CKA compares what two networks make of the same images, so it cannot compare real with synthetic images: real and
    synthetic are what the networks were *trained* on, and both look at the same held-out images. The control says how
    alike students and experts are on any few images.

    Returns:
        ``values`` and ``control``, each of shape (K, K); None without an expert, or where too few images are held out.
    """
    if expert is None:
        _log.info("No CKA: it compares students with an expert, and none is stored.")
        return None
    held_out = data_of(module).validation.to(module.device)
    rows = torch.randperm(len(held_out), generator=stream.generator())[:most].to(module.device)
    if len(rows) < FEWEST:
        _log.info("No CKA: it needs %d held-out images, there are %d.", FEWEST, len(rows))
        return None
    other = student_on(module, random_sets(module, len(distilled.labels), 1)[0])
    values, control = layer_similarity(expert, [student, other], held_out, rows)
    return {"values": values.cpu(), "control": control.cpu()}


@dataclass(frozen=True)
class Shown:
    """Some real images, then the first learned ones of each class, for t-SNE and projector."""

    layers: Sequence[Tensor]  # features in each layer, maps averaged to 8x8; shape (N, D_k)
    labels: Tensor  # class of each, shape (N,)
    learned: Tensor  # which are learned, shape (N,), bool
    pixels: Tensor  # as they look, shape (N, c, h, w) in [0, 1], on the CPU


def show(module: DistillationModule, distilled: Distilled, seen_by: Features, most: int, stream: Stream) -> Shown:
    """About ``most`` real images of the first ten classes, as many of each, and up to ten learned ones of each."""
    train = data_of(module).train.to(module.device)
    shown = min(train.num_classes, MOST_CLASSES)
    count = min(int(torch.bincount(train.labels).min()), max(1, most // shown))
    rows = train.per_class(count, stream.generator())[: shown * count]
    chosen = [row for label, each in distilled.shown().items() if label < shown for row in each]
    real = train.batch(rows)
    images = torch.cat([real.images, distilled.images[chosen].to(module.device)])
    return Shown(
        layers=seen_by.layers(images, most=8),
        labels=torch.cat([real.labels.cpu(), distilled.labels[chosen]]),
        learned=torch.arange(len(rows) + len(chosen)) >= len(rows),
        pixels=torch.cat([pixels_of(train, rows), distilled.pixels(chosen)]),
    )


def pixels_of(images: ImageSet, rows: Tensor) -> Tensor:
    """Real images as they look, without the rounding of a normalisation and its inverse, on the CPU."""
    return images.images[images.rows[rows.cpu()]].float() / 255


def measure(
    module: DistillationModule, distilled: Distilled, seen_by: Features, stream: Stream
) -> tuple[dict[str, Any], dict[str, Neighbours]]:
    """Nearest real images in pixels and features, diversity and overlap of the classes.

    All training images are searched by their pixels, up to 3,000 random ones by the features of the last layer.

    Returns:
        The numbers, by name, and the neighbours among the training images.
    """
    train, device = data_of(module).train.to(module.device), module.device
    pool = torch.randperm(len(train), generator=stream.generator())[:_POOL].to(device)
    learned = seen_by.deepest_of(distilled.training_set(device), torch.arange(len(distilled.labels), device=device))
    real = seen_by.deepest_of(train, pool)
    neighbours = {
        "pixels": _nearest_in_pixels(distilled, train, pool[:_USUAL]),
        "features": _nearest_in_features(learned, real, pool),
    }
    ours, theirs = (learned, distilled.labels.to(device)), (real, train.labels[pool])
    diversity = mean_pairwise_distance(*ours, train.num_classes) / mean_pairwise_distance(*theirs, train.num_classes)
    overlap = {"learned_neighbour": neighbour_overlap(*ours), "real_class_mean": mean_overlap(*ours, *theirs)}
    numbers = {
        "diversity": _finite(dict(zip(distilled.classes, diversity, strict=True))),
        "overlap": _finite(overlap),
        "neighbours": {
            "pixels": _told(neighbours["pixels"], searched=len(train)),
            "features": _told(neighbours["features"], searched=len(pool)),
        },
    }
    return numbers, neighbours


def _nearest_in_pixels(distilled: Distilled, train: ImageSet, usual: Tensor) -> Neighbours:
    """Among all training images; those at ``usual``, shape (R,), say what is usual."""
    device = usual.device
    every = torch.arange(len(train)).split(chunk_length(train.images))
    return find_neighbours(
        distilled.pixels(range(len(distilled.labels))).flatten(1).to(device),
        pixels_of(train, usual).flatten(1).to(device),
        usual,
        (pixels_of(train, rows).flatten(1).to(device) for rows in every),
    )


def _nearest_in_features(learned: Tensor, real: Tensor, pool: Tensor) -> Neighbours:
    """Among ``real``, features (R, D) of the training images at ``pool``, shape (R,); the first say what is usual."""
    usual = real[:_USUAL]
    found = find_neighbours(learned, usual, torch.arange(len(usual), device=pool.device), [real])
    return found._replace(rows=pool[found.rows])


def _told(found: Neighbours, searched: int) -> dict[str, Any]:
    """For a file; ``searched`` is the number of training images."""
    return {
        "searched": searched,
        "typical_distance": float(found.typical),
        "median_ratio": plain(found.ratio.median()),
        "ratio": plain(found.ratio),
        "nearest": found.rows.tolist(),
    }


def plain(values: Tensor) -> Any:
    """Nested lists of numbers for a file, without what is not finite."""
    if values.ndim:
        return [plain(value) for value in values]
    return float(values) if math.isfinite(values) else None


def _finite(values: dict[str, Tensor]) -> dict[str, float]:
    """Those that are defined, as plain numbers."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
