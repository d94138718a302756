"""The distilled set on disk: everything another program needs to train on it correctly.

A folder with ``distilled.safetensors`` (float32 images as trained, or canvases and their formation, labels, student
learning rate, normalisation, with its whitening if there is one), ``preview/<class>/NNN.png`` and ``sheet.png`` (8-bit,
to look at; ten of each class at most), ``README.md`` (a data set card) and ``manifest.json`` (SHA-256 of every file).
It is written as a whole or not at all. Reading checks every file that the manifest names: damaged tensors are refused,
a damaged file to look at is reported. Other files in the folder are left alone.
"""

import json
import logging
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import check_sha256, lies_inside, parsed_json, read_json, readable, replacing, sha256
from mim4dd_pl.data.formation import check_formation
from mim4dd_pl.data.normalization import Normalization, Whitening
from mim4dd_pl.stored.distilled import _WHITENING, Distilled, save_png, sheet

SCHEMA = 2
"""Of sets with a formation, which earlier versions would take for whole images; others have schema 1."""
TENSORS = "distilled.safetensors"
SHEET = "sheet.png"
_REMEDY = "Export it again, or use another copy."
_log = logging.getLogger(__name__)


def write_distilled(folder: Path, distilled: Distilled, tensors: bool = False) -> None:
    """Write the artefact to ``folder``, replacing what was there as a whole.

    Args:
        folder: Where.
        distilled: What.
        tensors: Add ``images.pt``, ``labels.pt`` (classes or soft labels) and ``lr.pt``, which evaluators of other
            codebases read.

    Raises:
        StoredFileError: If it cannot be written; what was there before is unchanged.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        # One key: safetensors writes several in random order, and the same set must have the same hash.
        schema, formation = (1, {}) if distilled.formation == 1 else (SCHEMA, {"formation": distilled.formation})
        about = {"schema": schema, **formation, "classes": distilled.classes, "facts": dict(distilled.facts)}
        save_file(distilled.tensors(), temporary / TENSORS, {"mim4dd_pl": json.dumps(about)})
        if tensors:
            given = distilled.training_set(torch.device("cpu"))
            for name, tensor in (("images", given.images), ("labels", given.labels), ("lr", distilled.student_lr)):
                torch.save(tensor.clone(), temporary / f"{name}.pt")
        for label, rows in distilled.shown().items():
            # Labels name the folders: class names may hold anything.
            previews = temporary / "preview" / f"{label:03d}"
            previews.mkdir(parents=True)
            for number, pixels in enumerate(distilled.pixels(rows)):
                save_png(pixels, previews / f"{number:03d}.png")
        save_png(sheet(distilled), temporary / SHEET)
        (temporary / "README.md").write_text(_card(distilled), encoding="utf-8")
        hashes = {
            path.relative_to(temporary).as_posix(): sha256(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        manifest = json.dumps({"schema": schema, "sha256": hashes}, indent=2)
        (temporary / "manifest.json").write_text(manifest + "\n", encoding="utf-8")


def read_distilled(folder: Path) -> Distilled:
    """Read an artefact after checking the hashes of its files.

    Files to look at (pictures, card, tensors for other codebases) are not read: if one is missing or damaged, a warning
    names it.

    Raises:
        StoredFileError: If it is missing, damaged, of another schema or no distilled set, or its manifest names files
            outside its folder.
    """
    folder = readable(folder)
    path = folder / TENSORS
    hashes = _read_manifest(folder)
    check_sha256(path, hashes.pop(TENSORS), _REMEDY)
    if odd := [
        name for name, digest in hashes.items() if not os.path.isfile(folder / name) or sha256(folder / name) != digest
    ]:
        _log.warning("%s: missing or damaged, the distilled images are whole: %.300s", folder, ", ".join(odd))
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            about = parsed_json(file.metadata()["mim4dd_pl"])
        whitening = {name: tensors.pop(f"whitening.{name}") for name in _WHITENING if f"whitening.{name}" in tensors}
        normalization = Normalization(
            tensors.pop("mean"), tensors.pop("std"), Whitening(**whitening) if whitening else None
        )
        classes, facts = tuple(about["classes"]), dict(about["facts"])
        logits = tensors.pop("label_logits", None)
        distilled = Distilled(
            **tensors,
            label_logits=logits,
            normalization=normalization,
            classes=classes,
            facts=facts,
            formation=about.get("formation", 1),
        )
        _check(distilled)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StoredFileError(f"{path} cannot be read: {error!s:.200}. {_REMEDY}") from error
    return distilled


def _read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 by name of every file, all of them inside ``folder``."""
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
        schema, hashes = manifest["schema"], {name: str(digest) for name, digest in manifest["sha256"].items()}
        hashes[TENSORS]
    except (FileNotFoundError, NotADirectoryError):
        raise StoredFileError(
            f"No distilled set in {folder} (it has no manifest.json). Give the folder that a fit names at its end."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{path} is damaged ({error!r:.200}). {_REMEDY}") from error
    if schema not in (1, SCHEMA):
        raise StoredFileError(f"{folder} has schema {schema!r:.40}, this version reads 1 and {SCHEMA}. {_REMEDY}")
    if outside := [name for name in hashes if not lies_inside(folder, name)]:
        raise StoredFileError(f"{path} names {outside[0]!r:.80}, which is no path inside its folder. {_REMEDY}")
    return hashes


def _check(distilled: Distilled) -> None:
    """Refuse what is no distilled set; raises ValueError with what was expected."""
    images, labels, normalization = distilled.images, distilled.labels, distilled.normalization
    shapes = {"images": tuple(images.shape), "labels": tuple(labels.shape)}
    if images.ndim != 4 or images.numel() == 0 or labels.shape != images.shape[:1]:
        raise ValueError(f"images must have shape (S, c, h, w) and labels (S,), got {shapes}")
    names = all(isinstance(name, str) for name in (*distilled.classes, *distilled.facts, *distilled.facts.values()))
    if not names or not distilled.classes:
        raise ValueError("classes and facts must be text")
    if not isinstance(distilled.formation, int):
        raise ValueError(f"formation must be a whole number, got {distilled.formation!r:.40}")
    check_formation(distilled.formation, images.shape[1:])
    channels, features = images.shape[1], math.prod(images.shape[1:])
    expected: dict[str, tuple[int, ...]] = {"student_lr": (), "mean": (channels,), "std": (channels,)}
    expected |= {"label_logits": (len(images) * distilled.formation**2, len(distilled.classes))}
    expected |= {"whitening.mean": (features,), "whitening.matrix": (features, features)}
    for name, tensor in distilled.tensors().items():
        if tensor.dtype != (torch.int64 if name == "labels" else torch.float32):
            raise ValueError(f"{name} has type {tensor.dtype}, expected float32 (labels: int64)")
        if tuple(tensor.shape) != expected.get(name, tuple(tensor.shape)):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(distilled.classes):
        raise ValueError(f"labels lie in {int(labels.min())}..{int(labels.max())}, there are {len(distilled.classes)}")
    if not (bool((normalization.std > 0).all()) and float(distilled.student_lr) > 0):
        raise ValueError("std and student_lr must be positive")


def _card(distilled: Distilled) -> str:
    per_class = len(distilled.labels) / len(distilled.classes)
    facts = "\n".join(f"| {name} | {value} |" for name, value in distilled.facts.items())
    label = "class index" if distilled.label_logits is None else "distribution over the classes"
    shape = "x".join(str(side) for side in distilled.images.shape[1:])
    per_image, count = distilled.formation**2, len(distilled.labels)
    formation = f", {distilled.formation}x{distilled.formation}" if per_image > 1 else ""
    tiles = f" Each holds {per_image} smaller ones: students train on {per_image * count}." if per_image > 1 else ""
    return f"""# Distilled {distilled.facts.get("data set", "images")}: {per_class:g} per class{formation}

![the learned images]({SHEET})

{count} learned images of {shape} for the classes {", ".join(distilled.classes)}.{tiles}

| | |
|---|---|
{facts}
| student learning rate | {float(distilled.student_lr):.5g} |

Train on `distilled.safetensors`, not on the pictures: learned pixels leave the 8-bit range, `preview/` and this page's
picture are clipped to it.

```python
from mim4dd_pl import DistilledDataset

data = DistilledDataset(".")      # checks the file's hash
image, label = data[0]            # normalised float32 image, {label}
x = data.normalize(real_images)   # real images in [0, 1], the way the set was made
```
"""
