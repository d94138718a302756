"""Files that are whole or absent: atomic writing and hashes.

A file is written under a temporary name beside its target, flushed to the disk and renamed over it, so a killed
process leaves the old file or the new one. One flipped bit passes safetensors and torch.load unnoticed, hence hashes.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mim4dd_pl.errors import StoredFileError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends, and vanishes if it fails.

    The block creates a file or a folder there. A folder at ``target`` is replaced as a whole.

    Raises:
        StoredFileError: If the disk is full, the folder read-only, or the like.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        for path in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            if path.is_file():
                _flush(path)
        if target.is_dir():
            # A folder cannot be renamed over a full one: step the old one aside for the moment between two renames.
            aside = target.with_name(f".{target.name}.{os.getpid()}.old")
            _remove(aside)
            os.replace(target, aside)
            os.replace(temporary, target)
            _remove(aside)
        else:
            os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise StoredFileError(
            f"Cannot write {target}: {error.strerror or error}. What was there before is unchanged; free space or "
            "choose another folder."
        ) from error
    finally:
        _remove(temporary)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target``, whole or not at all."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Refuse a file that is missing or differs from what was written.

    Raises:
        StoredFileError: Names the file and ends with ``remedy``.
    """
    if not path.is_file():
        raise StoredFileError(f"{path} is missing. {remedy}")
    if (found := sha256(path)) != expected:
        raise StoredFileError(f"{path} is damaged: its SHA-256 is {found[:12]}.., expected {expected[:12]}... {remedy}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    remove: Callable[[Path], None] = shutil.rmtree if path.is_dir() else Path.unlink
    if path.exists():
        remove(path)
