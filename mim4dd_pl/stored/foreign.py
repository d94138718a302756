"""Distilled sets as they come: our artefacts, folders of pictures, and the tensors that other codebases write.

Nothing in a file is run: tensors are read with ``weights_only=True``.
"""

import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError, StoredFileError
from mim4dd_pl.basics.files import check_stored, readable
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.folder import read_pictures
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.stored.artefact import read_distilled
from mim4dd_pl.stored.distilled import Distilled

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_IMAGES, _LABELS, _LR = ("images.pt", "images_best.pt"), ("labels.pt", "labels_best.pt"), "lr.pt"


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
    elif found := [name for name in _IMAGES if (folder / name).is_file()]:
        labels = folder / _LABELS[_IMAGES.index(found[0])]
        distilled = _from_tensors(folder / found[0], labels, classes, normalization, student_lr)
    else:
        try:
            images, numbers = read_pictures(folder, classes, image_shape)
        except DataError as error:
            raise StoredFileError(
                f"{folder} is no distilled set: it has neither manifest.json nor images.pt, and as a folder of "
                f"pictures: {error}"
            ) from error
        distilled = _distilled(normalization(images.float() / 255), numbers, None, classes, normalization, student_lr)
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


def _from_tensors(
    images_path: Path, labels_path: Path, classes: tuple[str, ...], normalization: Normalization, student_lr: float
) -> Distilled:
    images, labels = _tensor(images_path), _tensor(labels_path)
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise StoredFileError(
            f"{images_path} must hold normalised images of shape (S, c, h, w), got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    logits = None
    if labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] == len(classes):
        labels = labels.float()
        # A table of probabilities may have been rounded or stored in half precision.
        sums = labels.sum(1, keepdim=True)
        probabilities = bool((labels >= 0).all()) and bool((sums - 1).abs().max() < 1e-2)
        logits = (labels / sums).clamp(min=1e-12).log() if probabilities else labels
        labels = logits.argmax(1)
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype not in _INTEGERS:
        raise StoredFileError(
            f"{labels_path} must hold {len(images)} classes, or soft labels of shape ({len(images)}, {len(classes)}), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise StoredFileError(
            f"{labels_path} holds classes {int(labels.min())}..{int(labels.max())}, expected 0..{len(classes) - 1}."
        )
    lr_path = images_path.parent / _LR
    if lr_path.is_file():
        lr = _tensor(lr_path)
        student_lr = float(lr) if lr.numel() == 1 and not lr.is_complex() else float("nan")
        if not 0 < student_lr < float("inf"):
            raise StoredFileError(f"{lr_path} must hold one positive number, got {lr.tolist()!r:.40}.")
    return _distilled(images.float(), labels.long(), logits, classes, normalization, student_lr)


def _distilled(
    images: Tensor,
    labels: Tensor,
    logits: Tensor | None,
    classes: tuple[str, ...],
    normalization: Normalization,
    student_lr: float,
) -> Distilled:
    return Distilled(
        images=images,
        labels=labels,
        label_logits=logits,
        student_lr=torch.tensor(student_lr),
        normalization=normalization,
        classes=classes,
        facts={},
    )


def _tensor(path: Path) -> Tensor:
    if not path.is_file():
        raise StoredFileError(f"{path} is missing: images.pt, labels.pt and lr.pt belong together.")
    try:
        with path.open("rb") as file, suppress(zipfile.BadZipFile):  # torch's older files are no archives
            check_stored(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = torch.tensor(content) if isinstance(content, (int, float)) else content
    except Exception as error:  # torch's reader of a damaged file raises whatever it stumbles upon
        reason = str(error).strip().split("\n")[0]
        raise StoredFileError(f"{path} is no readable file of tensors ({reason:.120}).") from error
    dense = isinstance(content, Tensor) and content.layout == torch.strided and content.device.type == "cpu"
    if not dense or content.is_quantized:
        raise StoredFileError(f"{path} holds {_kind(content)}, expected a dense tensor.")
    if content.nbytes > (size := path.stat().st_size):
        raise StoredFileError(f"{path} holds a tensor of {content.nbytes:,} bytes in {size:,}: its numbers overlap.")
    return content.detach()


def _kind(content: object) -> str:
    if isinstance(content, Tensor):
        return f"a tensor of layout {content.layout} on {content.device}"
    return f"a {type(content).__name__}"


def _named(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ..' if len(classes) > 3 else ''})"
