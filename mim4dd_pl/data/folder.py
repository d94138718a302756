"""A tree of pictures as a source, in the layouts of ImageNet's descendants."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from mim4dd_pl.basics.errors import DataError, first_line
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.pictures import check_image_size, read_picture
from mim4dd_pl.data.sources import Source, Split

_Samples = list[tuple[str, int]]
"""Path and label of each picture."""

_ANNOTATIONS = "val_annotations.txt"


class ImageFolder(Source):
    """A tree ``root/train/<class>/<image>`` and ``root/test/<class>/<image>`` (or ``val`` for ``test``).

    Tiny ImageNet's layout will do too: ``val/images`` with ``val/val_annotations.txt``, and pictures in folders of
    their class's folder. Images become RGB, upright by their EXIF data and on white where they are transparent;
    they are resized so that the shorter side fits and cut to the centre square.

    Args:
        root: The folder; its name becomes the name of the data set.
        image_size: Side in pixels of the result.
        classes: Names of the class folders to use, in the order of their labels; all in alphabetical order by default.
    """

    rule = "upright, on white"

    def __init__(self, root: str, image_size: int, classes: list[str] | None = None) -> None:
        check_image_size(image_size)
        self.root = Path(root)
        self.name = os.path.basename(os.path.realpath(root))
        self.image_shape = (3, image_size, image_size)
        train = self.root / "train"
        if not train.is_dir():
            raise DataError(f"No folder {train}: expected train/<class>/ and test/<class>/ (or val/) in {self.root}.")
        folders = _class_folders(train)
        self.classes = folders if classes is None else tuple(classes)
        if not self.classes:
            raise DataError(f"{train} holds no class folders: expected train/<class>/<image>.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes names a class twice: {', '.join(self.classes)}.")
        if absent := [name for name in self.classes if name not in folders]:
            raise DataError(f"classes names {_some(absent)}, which {train} lacks; it has {_some(folders)}.")
        val = self.root / "val"
        # The test folder of ImageNet's descendants has no labels.
        held_out = [val] if (val / _ANNOTATIONS).is_file() else [self.root / "test", val]
        held_out = [folder for folder in held_out if folder.is_dir()]
        if not held_out:
            raise DataError(f"{self.root} has neither test/ nor val/ beside train/: one must hold the test images.")
        self._folders = (train, held_out[0])
        self._subset = classes is not None

    def files(self) -> Mapping[str, Path]:
        paths = [path for samples in self._samples for path, _ in samples]
        if (listed := self._folders[1] / _ANNOTATIONS).is_file():
            paths.append(str(listed))
        return {os.path.relpath(path, self.root): Path(path) for path in paths}

    def load(self) -> tuple[Split, Split]:
        train, test = (
            Split(torch.tensor([label for _, label in samples]), self._chunks([path for path, _ in samples]))
            for samples in self._samples
        )
        return train, test

    @cached_property
    def _samples(self) -> tuple[_Samples, _Samples]:
        train, held_out = self._folders
        numbers = {name: label for label, name in enumerate(self.classes)}
        if (listed := held_out / _ANNOTATIONS).is_file():
            return _listing(train, numbers), _annotated(listed, numbers, self._subset)
        odd = set(self.classes) ^ set(_class_folders(held_out))
        if self._subset:
            odd &= set(self.classes)
        if odd:
            raise DataError(f"{held_out} and {train} differ in the classes {_some(sorted(odd))}.")
        return _listing(train, numbers), _listing(held_out, numbers)

    def _chunks(self, paths: Sequence[str]) -> Iterator[Tensor]:
        # Pillow and torch decode and resize without Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), 256):
                yield torch.stack(list(pool.map(self._decode, paths[start : start + 256])))

    def _decode(self, path: str) -> Tensor:
        return read_picture(path, self.image_shape[1])


def read_pictures(folder: Path, classes: Sequence[str], image_shape: ImageShape) -> tuple[Tensor, Tensor]:
    """Pictures in class folders, named as the classes or by their numbers.

    Returns:
        Images (N, c, h, w), uint8, grey where c is 1, and labels (N,).

    Raises:
        DataError: If a folder is no class, a class has no picture, or a picture cannot be read.
    """
    folders = _class_folders(folder)
    numbers = {name: label for label, name in enumerate(classes)}
    if not all(name in numbers for name in folders) and all(name.isdecimal() for name in folders):
        numbers = {name: int(name) for name in folders}
    if odd := [name for name in folders if not 0 <= numbers.get(name, -1) < len(classes)]:
        raise DataError(f"{folder} has folders that are no class of the recipe's data: {_some(odd)}.")
    if len({numbers[name] for name in folders}) < len(classes):
        raise DataError(f"{folder} has folders for {len(folders)} of {len(classes)} classes.")
    samples = _listing(folder, {name: numbers[name] for name in folders})
    images = torch.stack([read_picture(path, image_shape[1]) for path, _ in samples])
    if image_shape[0] == 1:
        images = transforms.rgb_to_grayscale(images)
    return images, torch.tensor([label for _, label in samples])


def _listing(folder: Path, numbers: Mapping[str, int]) -> _Samples:
    """The pictures of the class folders, class by class in alphabetical order, then by path."""
    samples: _Samples = []
    for name, label in sorted(numbers.items()):
        seen, found = set(), []
        for root, _, files in os.walk(folder / name, onerror=_refuse, followlinks=True):
            if (real := os.path.realpath(root)) in seen:
                raise DataError(f"{root} is a link to a folder of the same class, {real}: remove it.")
            seen.add(real)
            found += [(root, file) for file in files if file[0] != "." and file.lower().endswith(IMG_EXTENSIONS)]
        if not found:
            raise DataError(f"{folder / name} holds no pictures, expected some of {', '.join(IMG_EXTENSIONS)}.")
        samples += [(os.path.join(*each), label) for each in sorted(found)]
    return samples


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _annotated(listed: Path, numbers: Mapping[str, int], subset: bool) -> _Samples:
    """Pictures of a flat folder, whose classes a file tells: name and class first in each line."""
    samples = []
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read: {first_line(error)}") from error
    for line in lines:
        words = line.split("\t")
        if len(words) < 2 or (words[1] not in numbers and not subset):
            raise DataError(
                f"{listed} holds the line {line!r:.60}, expected an image and one of the classes of train/."
            )
        if words[1] in numbers:
            samples.append((str(listed.parent / "images" / words[0]), numbers[words[1]]))
    found = {label for _, label in samples}
    if absent := [name for name, label in numbers.items() if label not in found]:
        raise DataError(f"{listed} lacks images of the classes {_some(absent)}.")
    return samples


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))


def _some(names: Sequence[str]) -> str:
    """Names in a sentence, a thousand of them shortened."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
