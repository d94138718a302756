"""Distilled sets as they come: our artefacts, folders of pictures, and the tensors that other codebases write.

Nothing in a file is run: tensors are read with ``weights_only=True``.
"""

import logging
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
_NUMBERS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8")),
]
"""What numpy's numbers are made of in a file: DC keeps accuracies beside its images."""

_log = logging.getLogger(__name__)


def read_set(
    path: Path, image_shape: ImageShape, classes: tuple[str, ...], normalization: Normalization, student_lr: float
) -> Distilled:
    """A distilled set, whoever wrote it.

    * An artefact of ours (it has a ``manifest.json``): as it is, with its own normalisation.
    * ``images.pt`` and ``labels.pt`` (or ``images_best.pt`` and ``labels_best.pt``; or ``images_<step>.pt`` and
      ``labels_<step>.pt``, of the last step), and ``lr.pt`` where there is one: images (S, c, h, w) as a network sees
      them, that is normalised (and whitened) as the recipe's data are; labels (S,), classes, or (S, C), soft labels as
      probabilities or logits. A line says what values they have; if none is below 0, they are refused as pixels.
    * ``res_*.pt``, as DC and DM write it: images and labels of the last experiment in it, likewise.
    * Class folders with pictures, named as the classes or by their numbers: normalised as the recipe's data are.

    Args:
        path: The folder, or a file in it.
        image_shape: (c, h, w) of the recipe's images.
        classes: Their classes.
        normalization: Theirs, on the CPU.
        student_lr: alpha, where none comes with the set.

    Raises:
        StoredFileError: If it is missing, damaged, never normalised or not of these classes and this shape.
    """
    folder, tensors = path.parent if path.is_file() else path, None
    if (readable(folder) / "manifest.json").is_file() or not folder.is_dir():
        distilled = read_distilled(folder)
    elif (tensors := path if path.is_file() else _found(folder)) is not None:
        images, labels, logits, lr = _read_tensors(tensors, len(classes), student_lr)
        distilled = Distilled(images, labels, logits, torch.tensor(lr), normalization, classes, {})
    else:
        try:
            pixels, labels = read_pictures(folder, classes, image_shape)
        except DataError as error:
            raise StoredFileError(
                f"{folder} is no distilled set: it has neither manifest.json nor images.pt, and as a folder of "
                f"pictures: {error}"
            ) from error
        images = normalization(pixels.float() / 255)
        distilled = Distilled(images, labels, None, torch.tensor(student_lr), normalization, classes, {})
    if tuple(distilled.images.shape[1:]) != image_shape or distilled.classes != classes:
        raise StoredFileError(
            f"{path} holds images of {tuple(distilled.images.shape[1:])} of {_named(distilled.classes)}, the "
            f"recipe's data are {image_shape} of {_named(classes)}: use the recipe that the set was made with."
        )
    if not torch.isfinite(distilled.training_set(torch.device("cpu")).labels).all():
        raise StoredFileError(f"{path} holds labels that are not finite.")
    if not torch.isfinite(distilled.images).all():
        raise StoredFileError(f"{path} holds images that are not finite.")
    if tensors is not None:
        _check_normalized(tensors, distilled.images, normalization)
    if distilled.label_logits is None and (absent := set(range(len(classes))).difference(distilled.labels.tolist())):
        _log.warning("%s holds no image of %s.", path, _named(tuple(classes[label] for label in sorted(absent))))
    return replace(distilled, facts={**distilled.facts, "distilled set": str(path)})


def _found(folder: Path) -> Path | None:
    """The file of images in a folder, if there is one; a line names it where there are several."""
    if plain := [folder / name for name in _IMAGES if (folder / name).is_file()]:
        return plain[0]
    names = {path: re.fullmatch(r"images_(\d+)\.pt", path.name) for path in folder.glob("images_*.pt")}
    if steps := {int(name[1]): path for path, name in names.items() if name}:
        _log.info("Of %d steps in %s, %s is read.", len(steps), folder, steps[max(steps)].name)
        return steps[max(steps)]
    results = sorted(folder.glob("res_*.pt"))
    if len(results) > 1:
        raise StoredFileError(f"{folder} holds {results[0].name} and {len(results) - 1} more: name one of them.")
    return results[0] if results else None


def _read_tensors(path: Path, num_classes: int, student_lr: float) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Images, labels, logits where these are soft, and the learning rate, which is ``student_lr`` if none is stored."""
    content, labels_path, logits = _load(path), path.with_name(path.name.replace("images", "labels")), None
    if isinstance(content, dict) and "data" in content:
        (images, labels), labels_path = (_dense(path, part) for part in _last(path, content["data"])), path
    elif labels_path == path:
        raise StoredFileError(f"{path} is no set of images: give the folder, its images.pt, or a res_*.pt of DC.")
    else:
        images, labels = _dense(path, content), _dense(labels_path, _load(labels_path))
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise StoredFileError(
            f"{path} must hold normalised images of shape (S, c, h, w), got {images.dtype} of shape "
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
    lrs = [path.with_name(name) for name in (path.name.replace("images", "lr"), "lr.pt")]
    lr = next((_read_lr(file) for file in lrs if file != path and file.is_file()), student_lr)
    return images.float(), labels.long(), logits, lr


def _last(path: Path, experiments: Any) -> Sequence[Any]:
    """[images, labels] of the last of DC's experiments."""
    pairs = isinstance(experiments, list) and all(isinstance(each, list | tuple) for each in experiments)
    if not pairs or not experiments or len(experiments[-1]) != 2:
        raise StoredFileError(f"data of {path} must be a list of [images, labels], one for each experiment.")
    if len(experiments) > 1:
        _log.info("Of %d experiments in %s, the last is read.", len(experiments), path)
    last: Sequence[Any] = experiments[-1]
    return last


def _check_normalized(path: Path, images: Tensor, normalization: Normalization) -> None:
    """Say what values images have that should be normalised, and refuse pixels that never were.

    Of normalised images the darker half lies below 0, and a set without any value there is none.
    """
    low, high = float(images.min()), float(images.max())
    mean, std = ([round(value, 4) for value in moment.tolist()] for moment in (normalization.mean, normalization.std))
    whitened = ", then whitened" if normalization.whitening is not None else ""
    if low >= 0:
        raise StoredFileError(
            f"{path} holds values in {low:.3g}..{high:.3g}, none below 0: pixels that were never normalised. Pixels in "
            f"0..1 are normalised as the recipe's data by (pixels - {mean}) / {std} for each channel{whitened}."
        )
    _log.info(
        "%s holds values in %.3g..%.3g of mean %.2f and std %.2f, and is taken as normalised by mean %s and std %s%s.",
        *(path, low, high, float(images.mean()), float(images.std(correction=0)), mean, std, whitened),
    )
    inside = float(((images > -0.1) & (images < 1.1)).float().mean())
    if inside > 0.95 or float(images.std(correction=0)) > 20:
        _log.warning("%s looks like pixels that were never normalised; it is evaluated all the same.", path)


def _read_lr(path: Path) -> float:
    lr = _dense(path, _load(path))
    value = float(lr) if lr.numel() == 1 and not lr.is_complex() else float("nan")
    if not 0 < value < float("inf"):
        raise StoredFileError(f"{path} must hold one positive number, got {lr.tolist()!r:.40}.")
    return value


def _load(path: Path) -> Any:
    if not path.is_file():
        raise StoredFileError(f"{path} is missing: images.pt, labels.pt and lr.pt belong together.")
    try:
        with path.open("rb") as file, suppress(zipfile.BadZipFile):  # torch's older files are no archives
            check_stored(file)
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of a damaged file raises whatever it stumbles upon
        raise StoredFileError(f"{path} is no readable file of tensors ({first_line(error):.120}).") from error


def _dense(path: Path, content: Any) -> Tensor:
    content = torch.tensor(content) if isinstance(content, int | float) else content
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
