"""The accuracy of a distilled set on somebody's own images, in one call."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4dd_pl.basics.names import DISTILLED
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sets import Batch, InMemory
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.evaluator import Evaluator, Protocol
from mim4dd_pl.population.scores import Score
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.dataset import DistilledDataset

LabelledImages: TypeAlias = tuple[Tensor, Tensor] | Dataset[Any] | Sequence[tuple[Tensor, int]]

_BATCH = 256  # images that are classified at a time


def evaluate(
    data: DistilledDataset,
    test: LabelledImages,
    network: NetworkFactory = ConvNet,
    students: int = 5,
    epochs: int = 300,
    lr: float | None = None,
    batch_size: int = 256,
    augment: DSA | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Score:
    """Accuracy of fresh networks that are trained on a distilled set, on real images.

    Each student is trained by SGD with momentum 0.9 and weight decay 5e-4, as in the recipes. ``mim4dd test`` with the
    same settings and seed gives the same numbers, up to the rounding of compiled steps.

    Source: the protocol of Zhao et al. 2021 (arXiv:2006.05929); with the learned rate, of Cazenavette et al. 2022
    (arXiv:2203.11932).

    Args:
        data: What students are trained on, with its soft labels if it has some.
        test: What they classify: a torch Dataset or a sequence of (image, label), or a pair of tensors (images,
            labels). Images have shape (c, h, w), together (N, c, h, w), and pixels in [0, 1], or in 0..255 as uint8;
            they are normalised as the set was. Labels are classes in 0..C-1, together of shape (N,).
        network: Builds a student from (image_shape, num_classes); by default the ConvNet of the field, as deep as the
            images allow.
        students: How many, at least 1.
        epochs: Passes over the set.
        lr: Learning rate; by default the one that was learned with the images.
        batch_size: Images per step.
        augment: Augmentation of the set; none by default.
        seed: Of initialisations, order and augmentation.
        device: Where students are trained.

    Returns:
        ``mean`` and ``std`` of the students' ``accuracies``, fractions in [0, 1], and more.

    Raises:
        ValueError: If a setting is out of its range, the network does not take such images, ``test`` is empty, or its
            images or labels are not of the set's kind.
    """
    if students < 1:
        raise ValueError(f"students must be at least 1, got {students}.")
    chosen = data.student_lr if lr is None else lr
    training = Training(epochs, batch_size, chosen, momentum=0.9, weight_decay=5e-4, augment=augment)
    image_shape, classes = (data.images.shape[1], data.images.shape[2], data.images.shape[3]), len(data.classes)
    pixels, labels = _tensors(test)
    _check(pixels, labels, image_shape, classes)
    place = torch.device(device)

    def batches() -> Iterator[Batch]:
        for some, of in zip(pixels.split(_BATCH), labels.split(_BATCH), strict=True):
            real = some.float() / 255 if some.dtype == torch.uint8 else some.float()
            yield Batch(data.normalize(real.to(place)), of.to(place).long())

    evaluator = Evaluator(
        Protocol(training, students),
        FlatNetwork(network, image_shape, classes),
        Stream(seed).at("evaluation"),
        place,
        test_images=batches,
        compile="auto",
    )
    own = InMemory(data.images.to(place), (data.labels if data.soft_labels is None else data.soft_labels).to(place))
    return evaluator.test(DISTILLED, evaluator.train([own] * students))


def _tensors(test: LabelledImages) -> tuple[Tensor, Tensor]:
    """Images (N, c, h, w) and labels (N,), whatever they come in."""
    if isinstance(test, tuple) and len(test) == 2 and all(isinstance(part, Tensor) for part in test):
        return torch.as_tensor(test[0]), torch.as_tensor(test[1])
    pairs: list[Any] = [test[index] for index in range(len(test))]  # type: ignore[arg-type]
    if not pairs:
        raise ValueError("test holds no images.")
    images, labels = zip(*pairs, strict=True)
    if odd := [image for image in images if not isinstance(image, Tensor)]:
        raise ValueError(f"test holds {type(odd[0]).__name__} in place of images as tensors (c, h, w): convert them.")
    return torch.stack(images), torch.as_tensor(labels)


def _check(pixels: Tensor, labels: Tensor, image_shape: tuple[int, int, int], classes: int) -> None:
    """Refuse images and labels that students of the set cannot be tested on."""
    shape = tuple(pixels.shape[1:])
    if pixels.ndim != 4 or shape != image_shape:
        raise ValueError(f"test holds images of shape {shape}, the distilled ones have {image_shape}.")
    if len(pixels) == 0 or tuple(labels.shape) != (len(pixels),):
        raise ValueError(f"test holds {len(pixels)} images, and labels of shape {tuple(labels.shape)}: give one each.")
    if pixels.dtype != torch.uint8 and not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
        low, high = float(pixels.min()), float(pixels.max())
        raise ValueError(f"test holds pixels in {low:.3g}..{high:.3g}, expected [0, 1]: undo their normalisation.")
    if labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = labels.unique().tolist()[:20]
        raise ValueError(f"test holds labels {found}, expected whole numbers in 0..{classes - 1}.")
