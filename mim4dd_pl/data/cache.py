"""Images decoded once: a folder of arrays that later runs map into memory, with what was measured on them.

``<cache>/<name>-<key>/`` holds ``train_images.npy``, ``train_labels.npy``, ``test_images.npy``, ``test_labels.npy`` and
``about.json``; the key changes with the source's settings and its rule of decoding, and with the size or time of any
of its files. A sample of their content in ``about.json`` shows files that were changed behind an old time. Beside
them lie the statistics and whitenings of splits, under the fingerprint of their training images.
"""

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.files import check_room, locked, read_json, replacing, sha256, write_text
from mim4dd_pl.basics.machine import check_memory
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.normalization import Normalization, Whitening, statistics, whitened
from mim4dd_pl.data.sets import content_hash
from mim4dd_pl.data.sources import Source, Split

SCHEMA = 1
_SPLITS = ("train", "test")
_BLOCKS, _BLOCK = 1024, 2**16
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)
_log = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """One split: images (N, c, h, w) uint8, labels (N,) int64, and the SHA-256 of both."""

    images: Tensor
    labels: Tensor
    content: str


class Cache:
    """What is kept of one source.

    Args:
        source: Of the images.
        root: Folder of all caches; None keeps nothing.
    """

    def __init__(self, source: Source, root: str | None) -> None:
        self._source = source
        files = source.files() if root is not None else {}
        self._files = files
        self._folder = Path(root) / f"{source.name}-{_key(source, files)}" if root is not None and files else None

    def find(self) -> tuple[Decoded, Decoded] | None:
        """Training and test images if they have been decoded before, and a line that says so.

        What is damaged, or decoded from files of other content, counts as absent.
        """
        if (found := self._find()) is not None and self._folder is not None:
            decoded = datetime.fromtimestamp((self._folder / "about.json").stat().st_mtime)
            _log.info(
                "%s as it was decoded on %s into %s.", self._source.name, f"{decoded:%Y-%m-%d %H:%M}", self._folder
            )
        return found

    def _find(self) -> tuple[Decoded, Decoded] | None:
        if self._folder is None or not (self._folder / "about.json").is_file():
            return None
        try:
            about = read_json(self._folder / "about.json")
            wrong = [name for name, size in about["bytes"].items() if (self._folder / name).stat().st_size != size]
            if about["schema"] != SCHEMA or wrong:
                raise ValueError(f"{', '.join(wrong) or 'its schema'} is not as it was written")
            if about.get("sample", self._sample) != self._sample:  # folders of before have none
                raise ValueError("the files have changed, though their names, sizes and times have not")
            train, test = (_mapped(self._folder, split, about["sha256"][split]) for split in _SPLITS)
        except _DAMAGED as error:
            _log.warning("%s is decoded anew: %s", self._folder, error)
            return None
        return train, test

    def decode(self, splits: tuple[Split, Split]) -> tuple[Decoded, Decoded]:
        """Training and test images of ``splits``, as :func:`~mim4dd_pl.data.sources.delivered` has checked them.

        They are kept if there is a place for them.

        Raises:
            DataError: If a picture cannot be decoded or is not what the source promises, or all of them do not fit in
                memory where there is no place for them; nothing is left.
            StoredFileError: If they cannot be written, or the disk has no room for them.
        """
        shape = self._source.image_shape
        size = math.prod(shape) * sum(len(split.labels) for split in splits)
        if self._folder is None:
            check_memory(self._source.name, size, "keep its images in a folder (cache)")
            train, test = (_in_memory(shape, split.labels, split.chunks) for split in splits)
            return train, test
        with locked(self._folder.parent, self._folder.name):
            # Another process may have decoded them while this one waited.
            if (found := self._find()) is None:
                check_room({self._folder: size})
                sample = self._sample  # of what is decoded: read before it
                _log.info("Decoding %s into %s ...", self._source.name, self._folder)
                with replacing(self._folder) as temporary:
                    temporary.mkdir()
                    contents = {
                        name: _write(temporary, name, shape, split.labels, split.chunks)
                        for name, split in zip(_SPLITS, splits, strict=True)
                    }
                    about = {
                        "schema": SCHEMA,
                        "name": self._source.name,
                        "classes": self._source.classes,
                        "image_shape": shape,
                        "sample": sample,
                        "sha256": contents,
                        "bytes": {path.name: path.stat().st_size for path in sorted(temporary.glob("*.npy"))},
                    }
                    (temporary / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
                found = self._find()
        if found is None:
            raise DataError(f"{self._folder} has changed while it was opened; run again.")
        return found

    @cached_property
    def _sample(self) -> str:
        """SHA-256 of up to 1,024 blocks of 64 KiB, spread over the files and over each; small ones are read whole.

        Of few files the tails are among them, where an archive has the checksums of all its members.
        """
        files = [self._files[name] for name in sorted(self._files)]
        chosen = files[:: -(-len(files) // _BLOCKS)]
        blocks, digest = _BLOCKS // len(chosen), hashlib.sha256()
        for path in chosen:
            try:
                with path.open("rb") as file:
                    last = max(0, path.stat().st_size - _BLOCK)
                    steps = min(blocks - 1, -(-last // _BLOCK))
                    for number in range(steps + 1):
                        file.seek(last * number // max(1, steps))
                        digest.update(file.read(_BLOCK))
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        return digest.hexdigest()

    def normalization(self, train: Decoded, rows: Tensor, fingerprint: str, zca: bool) -> Normalization:
        """Statistics and, if ``zca``, whitening of the training images at ``rows``; measured once if they are kept."""
        if self._folder is None:
            plain = statistics(train.images, rows)
            return whitened(plain, train.images, rows) if zca else plain
        path = self._folder / f"split-{fingerprint[:16]}.json"
        if (known := _read_normalization(path, zca)) is not None:
            return known
        with locked(self._folder):
            if (known := _read_normalization(path, zca)) is None:
                known = statistics(train.images, rows)
                if zca:
                    _log.info("Fitting the ZCA whitening of %s ...", self._source.name)
                    known = whitened(known, train.images, rows)
                _write_normalization(path, known)
        return known


def _key(source: Source, files: Mapping[str, Path]) -> str:
    """Of what decides the result of decoding: the source's settings and rule, and each file's name, size and time."""
    kind = f"{type(source).__name__} {source.rule}".rstrip()
    digest = hashlib.sha256(repr((SCHEMA, kind, source.image_shape, source.classes)).encode())
    for name, path in sorted(files.items()):
        try:
            facts = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        digest.update(repr((name, facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:12]


def _in_memory(shape: ImageShape, labels: Tensor, chunks: Iterable[Tensor]) -> Decoded:
    images = torch.empty(len(labels), *shape, dtype=torch.uint8)
    row = 0
    for chunk in chunks:
        images[row : row + len(chunk)] = chunk
        row += len(chunk)
    return Decoded(images, labels, content_hash(shape, labels, [images]))


def _write(folder: Path, split: str, shape: ImageShape, labels: Tensor, chunks: Iterable[Tensor]) -> str:
    """Write one split chunk by chunk; returns the SHA-256 of its content."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *shape)}

    def written(file: IO[bytes]) -> Iterator[Tensor]:
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk.numpy()).data)
            yield chunk

    with (folder / f"{split}_images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        content = content_hash(shape, labels, written(file))
    np.save(folder / f"{split}_labels.npy", labels.numpy())
    return content


def _mapped(folder: Path, split: str, content: str) -> Decoded:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
    with warnings.catch_warnings():
        # Nobody writes, and Linux refuses writable mappings that are larger than memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Decoded(torch.from_numpy(images), torch.from_numpy(labels), str(content))


def _read_normalization(path: Path, zca: bool) -> Normalization | None:
    """What is known of a split; what is damaged counts as absent."""
    try:
        about = read_json(path)
        known = Normalization(torch.tensor(about["mean"]), torch.tensor(about["std"]))
        if not zca:
            return known
        stored = path.with_suffix(".safetensors")
        if about["whitening"] is None or sha256(stored) != about["whitening"]:
            return None
        return replace(known, whitening=Whitening(**load_file(stored)))
    except _DAMAGED:
        return None


def _write_normalization(path: Path, normalization: Normalization) -> None:
    stored, digest = path.with_suffix(".safetensors"), None
    if (whitening := normalization.whitening) is not None:
        with replacing(stored) as temporary:
            save_file({"mean": whitening.mean, "matrix": whitening.matrix.contiguous()}, temporary)
        digest = sha256(stored)
    about = {"mean": normalization.mean.tolist(), "std": normalization.std.tolist(), "whitening": digest}
    write_text(path, json.dumps(about) + "\n")
