"""A tree of pictures as a source, in the layouts of ImageNet's descendants."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError, first_line
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.pictures import KINDS, check_image_size, is_picture, read_picture
from mim4dd_pl.data.sources import Source, Split

_Samples = list[tuple[str, int]]
"""Path and label of each picture."""

_ANNOTATIONS = "val_annotations.txt"
_THUMBNAILS = ("@eaDir", "__MACOSX")
"""Folders that storage systems and archives add; like hidden ones, whose names begin with a dot, they are no data."""

_log = logging.getLogger(__name__)


class ImageFolder(Source):
    """A tree ``root/train/<class>/<image>`` and ``root/test/<class>/<image>`` (or ``val`` for ``test``).

    Tiny ImageNet's layout will do too: ``val/images`` with ``val/val_annotations.txt``, and pictures in folders of
    their class's folder. JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF, AVIF and JPEG 2000 are read by their content, whatever
    their names say, the first page or frame of each. Files of other kinds are left out, and one line says how many;
    hidden files and folders (``.name``, ``@eaDir``, ``__MACOSX``) are passed over.

    Images become RGB, upright by their EXIF data and on white where they are transparent; they are resized so that the
    shorter side fits and cut to the centre square.

    Args:
        root: The folder; its name becomes the name of the data set.
        image_size: Side in pixels of the result.
        classes: Names of the class folders to use, in the order of their labels; all in alphabetical order by default.
        channels: 1 makes grey images; 3, the default, those in colour, of which grey pictures become three equal ones.
    """

    rule = "upright, on white"

    def __init__(
        self, root: str, image_size: int, classes: list[str] | None = None, channels: int | None = None
    ) -> None:
        check_image_size(image_size)
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}.")
        self.root = Path(root)
        self.name = os.path.basename(os.path.realpath(root))
        self.image_shape = (channels or 3, image_size, image_size)
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
        self._paged: list[str] = []

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
            return _listings(self.root, (train, numbers))[0], _annotated(listed, numbers, self._subset)
        odd = set(self.classes) ^ set(_class_folders(held_out))
        if self._subset:
            odd &= set(self.classes)
        if odd:
            raise DataError(f"{held_out} and {train} differ in the classes {_some(sorted(odd))}.")
        of_train, of_held_out = _listings(self.root, (train, numbers), (held_out, numbers))
        return of_train, of_held_out

    def _chunks(self, paths: Sequence[str]) -> Iterator[Tensor]:
        # Pillow and torch decode and resize without Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), 256):
                yield torch.stack(list(pool.map(self._decode, paths[start : start + 256])))
        _say_paged(self._paged)
        self._paged.clear()

    def _decode(self, path: str) -> Tensor:
        picture = read_picture(path, self.image_shape[1], self.image_shape[0])
        if picture.more:
            self._paged.append(path)
        return picture.pixels


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
    (samples,) = _listings(folder, (folder, {name: numbers[name] for name in folders}))
    pictures = [read_picture(path, image_shape[1], image_shape[0]) for path, _ in samples]
    _say_paged([path for (path, _), picture in zip(samples, pictures, strict=True) if picture.more])
    return torch.stack([picture.pixels for picture in pictures]), torch.tensor([label for _, label in samples])


def _say_paged(paths: Sequence[str]) -> None:
    if paths:
        _log.info("%d pictures have further pages or frames, which are not read: %s", len(paths), _some(sorted(paths)))


def _listings(root: Path, *splits: tuple[Path, Mapping[str, int]]) -> list[_Samples]:
    """The pictures of each of some folders of classes, and a line about the files in them that are none."""
    left: Counter[str] = Counter()
    listings = [_listing(folder, numbers, left) for folder, numbers in splits]
    if left:
        kinds = [f"{count} {suffix[:20] or 'without a suffix'}" for suffix, count in left.most_common()]
        _log.info("%s: %d files are left out, which are no pictures: %s", root, left.total(), _some(kinds))
    return listings


def _listing(folder: Path, numbers: Mapping[str, int], left: Counter[str]) -> _Samples:
    """The pictures, class by class in alphabetical order, then by path; other files are counted by suffix."""
    samples: _Samples = []
    for name, label in sorted(numbers.items()):
        seen, found = set(), []
        for root, folders, files in os.walk(folder / name, onerror=_refuse, followlinks=True):
            folders[:] = [inner for inner in folders if _shown(inner)]
            if (real := os.path.realpath(root)) in seen:
                raise DataError(f"{root} is a link to a folder of the same class, {real}: remove it.")
            seen.add(real)
            for file in filter(_shown, files):
                if is_picture(os.path.join(root, file)):
                    found.append((root, file))
                else:
                    left[os.path.splitext(file)[1].lower()] += 1
        if not found:
            raise DataError(f"{folder / name} holds no pictures, expected some of {', '.join(KINDS)}.")
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
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and _shown(path.name)))


def _shown(name: str) -> bool:
    return name[0] != "." and name not in _THUMBNAILS


def _some(names: Sequence[str]) -> str:
    """Names in a sentence, a thousand of them shortened."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
