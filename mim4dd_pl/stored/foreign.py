"""Distilled sets as they come: our artefacts, folders of pictures, and the tensors that other codebases write.

Nothing in a file is run: tensors are read with ``weights_only=True``.
"""

import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError, StoredFileError, first_line
from mim4dd_pl.basics.files import check_stored, readable
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.folder import read_pictures
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.stored.artefact import read_distilled
from mim4dd_pl.stored.distilled import Distilled

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_IMAGES = ("images.pt", "images_best.pt")


def read_set(
    folder: Path, image_shape: ImageShape, classes: tuple[str, ...], normalization: Normalization, student_lr: float
) -> Distilled:
    """A distilled set, whoever wrote it.

    * An artefact of ours (it has a ``manifest.json``): as it is, with its own normalisation.
    * ``images.pt`` and ``labels.pt`` (or ``images_best.pt`` and ``labels_best.pt``), and ``lr.pt`` where there is one:
      images (S, c, h, w) as a network sees them, that is normalised (and whitened) as the recipe's data are; labels
      (S,), classes, or (S, C), soft labels as probabilities or logits.
    * Class folders with pictures, named as the classes or by their numbers: normalised as the recipe's data are.

    Args:
        folder: Where it lies.
        image_shape: (c, h, w) of the recipe's images.
        classes: Their classes.
        normalization: Theirs, on the CPU.
        student_lr: alpha, where none comes with the set.

    Raises:
        StoredFileError: If it is missing, damaged or not of these classes and this shape.
    """
    if (readable(folder) / "manifest.json").is_file() or not folder.is_dir():
        distilled = read_distilled(folder)
    else:
        logits = None
        if found := [name for name in _IMAGES if (folder / name).is_file()]:
            images, labels, logits = _read_tensors(folder, found[0], len(classes))
            student_lr = _read_lr(folder / "lr.pt", student_lr)
        else:
            try:
                pixels, labels = read_pictures(folder, classes, image_shape)
            except DataError as error:
                raise StoredFileError(
                    f"{folder} is no distilled set: it has neither manifest.json nor images.pt, and as a folder of "
                    f"pictures: {error}"
                ) from error
            images = normalization(pixels.float() / 255)
        distilled = Distilled(images, labels, logits, torch.tensor(student_lr), normalization, classes, {})
    if tuple(distilled.images.shape[1:]) != image_shape or distilled.classes != classes:
        raise StoredFileError(
            f"{folder} holds images of {tuple(distilled.images.shape[1:])} of {_named(distilled.classes)}, the "
            f"recipe's data are {image_shape} of {_named(classes)}: use the recipe that the set was made with."
        )
    if not torch.isfinite(distilled.training_set(torch.device("cpu")).labels).all():
        raise StoredFileError(f"{folder} holds labels that are not finite.")
    if not torch.isfinite(distilled.images).all():
        raise StoredFileError(f"{folder} holds images that are not finite.")
    return replace(distilled, facts={**distilled.facts, "distilled set": str(folder)})


def _read_tensors(folder: Path, name: str, num_classes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, labels, and logits where these are soft."""
    images_path, labels_path = folder / name, folder / name.replace("images", "labels")
    images, labels, logits = _tensor(images_path), _tensor(labels_path), None
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise StoredFileError(
            f"{images_path} must hold normalised images of shape (S, c, h, w), got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    if labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] == num_classes:
        labels = labels.float()
        # A table of probabilities may have been rounded or stored in half precision.
        sums = labels.sum(1, keepdim=True)
        probabilities = bool((labels >= 0).all()) and bool((sums - 1).abs().max() < 1e-2)
        logits = (labels / sums).clamp(min=1e-12).log() if probabilities else labels
        labels = logits.argmax(1)
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype not in _INTEGERS:
        raise StoredFileError(
            f"{labels_path} must hold {len(images)} classes, or soft labels of shape ({len(images)}, {num_classes}), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise StoredFileError(
            f"{labels_path} holds classes {int(labels.min())}..{int(labels.max())}, expected 0..{num_classes - 1}."
        )
    return images.float(), labels.long(), logits


def _read_lr(path: Path, default: float) -> float:
    if not path.is_file():
        return default
    lr = _tensor(path)
    value = float(lr) if lr.numel() == 1 and not lr.is_complex() else float("nan")
    if not 0 < value < float("inf"):
        raise StoredFileError(f"{path} must hold one positive number, got {lr.tolist()!r:.40}.")
    return value


def _tensor(path: Path) -> Tensor:
    if not path.is_file():
        raise StoredFileError(f"{path} is missing: images.pt, labels.pt and lr.pt belong together.")
    try:
        with path.open("rb") as file, suppress(zipfile.BadZipFile):  # torch's older files are no archives
            check_stored(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = torch.tensor(content) if isinstance(content, (int, float)) else content
    except Exception as error:  # torch's reader of a damaged file raises whatever it stumbles upon
        raise StoredFileError(f"{path} is no readable file of tensors ({first_line(error):.120}).") from error
    if not isinstance(content, Tensor):
        raise StoredFileError(f"{path} holds a {type(content).__name__}, expected a dense tensor.")
    if content.layout != torch.strided or content.device.type != "cpu" or content.is_quantized:
        raise StoredFileError(
            f"{path} holds a tensor of layout {content.layout} on {content.device}, expected a dense one."
        )
    if content.nbytes > (size := path.stat().st_size):
        raise StoredFileError(f"{path} holds a tensor of {content.nbytes:,} bytes in {size:,}: its numbers overlap.")
    return content.detach()


def _named(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ..' if len(classes) > 3 else ''})"
