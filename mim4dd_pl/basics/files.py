"""Files that are whole or absent: atomic writing and hashes.

A file is written under a temporary name beside its target, flushed to the disk and renamed over it, so a killed
process leaves the old file or the new one. One flipped bit passes safetensors and torch.load unnoticed, hence hashes.
"""

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mim4dd_pl.basics.errors import StoredFileError

_UMASK = os.umask(0)  # which is read by setting it
os.umask(_UMASK)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends, and vanishes if it fails.

    The block creates a file or a folder there; if it fails, parent folders that were made for it go as well. A folder
    at ``target`` is replaced as a whole; a process that is killed between the two renames this takes leaves the old
    folder aside, and the next writer puts it back. One writer per target: what an earlier, killed one left behind is
    swept.

    Raises:
        StoredFileError: If the disk is full, the folder read-only, or the like.
    """
    temporary, aside = (target.with_name(f".{target.name}.{suffix}") for suffix in ("tmp", "old"))
    made = _missing(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        restore(target)
        _remove(temporary)
        yield temporary
        for path in (temporary, *temporary.rglob("*")):
            if path.is_file():
                path.chmod(0o666 & ~_UMASK)  # some libraries write for the owner alone
            _flush(path)
        if target.is_dir():
            os.replace(target, aside)
        os.replace(temporary, target)
        _remove(aside)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        restore(target)
        raise StoredFileError(
            f"Cannot write {target}: {getattr(error, 'strerror', None) or error}. What was there before is "
            "unchanged; free space or choose another folder."
        ) from error
    finally:
        _remove(temporary)
        _remove_empty(made)


def readable(target: Path) -> Path:
    """Where a reader finds the folder ``target``: in its place, or aside while a writer replaces it."""
    aside = target.absolute().with_name(f".{target.name}.old")
    return aside if aside.exists() and not target.exists() else target


def restore(target: Path) -> None:
    """Put back a folder that a killed writer had moved aside, or sweep it if its successor is in place."""
    aside = target.with_name(f".{target.name}.old")
    if target.exists():
        _remove(aside)
    elif aside.exists():
        os.replace(aside, target)


@contextmanager
def locked(folder: Path, name: str = "", waits: bool = True) -> Iterator[None]:
    """Hold a folder, or a name in it, for this thread alone while the block runs; others wait.

    The lock dies with the process; its file goes with the block, and an empty folder too if this call made it.

    Raises:
        BlockingIOError: If somebody else holds it, and not ``waits``.
    """
    path, made = folder / f".{name}.lock" if name else folder / ".lock", _missing(folder)
    lock = FileLock(path, blocking=waits, fallback_to_soft=False)
    while not lock.is_locked:
        try:
            lock.acquire()
        except Timeout:
            raise BlockingIOError(errno.EWOULDBLOCK, "Held by another process", str(path)) from None
        except OSError as error:
            # The holder before us removed the file, or its folder, meanwhile; NFS calls that stale.
            gone = error.errno in (errno.ENOENT, errno.EEXIST, errno.ESTALE)
            if not gone or folder.is_symlink() or folder.is_file():
                raise
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()
        _remove_empty(made)


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
    if not os.path.isfile(path):
        raise StoredFileError(f"{path} is missing. {remedy}")
    if (found := sha256(path)) != expected:
        raise StoredFileError(
            f"{path} is damaged, or the manifest.json beside it: its SHA-256 is {found[:12]}.., expected "
            f"{expected[:12]}... {remedy}"
        )


def nearest_existing(folder: Path) -> Path:
    """``folder``, or the inmost of its parents that is there, be it a folder or something in the way."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before anything is.

    Raises:
        StoredFileError: If it, or the folder in which it would be made, is no folder or read-only.
    """
    place = nearest_existing(folder)
    if not place.is_dir():
        raise StoredFileError(f"Cannot write to {folder}: {place} is no folder. Choose another one.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoredFileError(f"Cannot write to {folder}: {place} is read-only. Choose another one.")


def check_room(needed: Mapping[Path, int]) -> None:
    """Refuse to begin what the disks cannot hold.

    Args:
        needed: Bytes to be written, by folder; those on one disk are added up.

    Raises:
        StoredFileError: Names the folder, what is free and what is needed.
    """
    wanted: dict[int, int] = {}
    for folder, size in needed.items():
        place = nearest_existing(folder)
        disk = place.stat().st_dev
        wanted[disk] = wanted.get(disk, 0) + size
        if wanted[disk] > (free := shutil.disk_usage(place).free):
            raise StoredFileError(
                f"The disk of {folder} has {free / 2**20:,.0f} MiB free, {wanted[disk] / 2**20:,.0f} MiB are needed: "
                "free space or choose another folder."
            )


_MOST_JSON = 2**24


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: If it is none.
        ValueError: If it is larger than 16 MiB, or no JSON; says in words what is wrong.
    """
    if not os.path.isfile(path):  # a pipe would block for ever
        raise FileNotFoundError(2, "No such file", str(path))
    if (size := path.stat().st_size) > _MOST_JSON:
        raise ValueError(f"it has {size:,} bytes, expected at most {_MOST_JSON:,}")
    return parsed_json(path.read_text(encoding="utf-8"))


def parsed_json(text: str) -> Any:
    """What a text in JSON says; raises ValueError if it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_stored(archive: IO[bytes]) -> None:
    """Refuse a zip archive of torch's that is compressed, which torch never does: it may expand a thousandfold.

    Raises:
        ValueError: Says so.
        BadZipFile: If it is no zip archive.
    """
    with zipfile.ZipFile(archive) as members:
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
            raise ValueError("it holds compressed data, which torch never writes")


def lies_inside(folder: Path, name: str) -> bool:
    """Whether ``name`` is a plain path to below ``folder``, and no link leads out of it."""
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or str(plain) != name:
        return False
    try:
        return (folder / plain).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _missing(folder: Path) -> list[Path]:
    """``folder`` and its parents that do not exist, inmost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders as long as they are empty, inmost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
