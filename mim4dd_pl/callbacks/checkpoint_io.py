"""Checkpoint files: whole or absent, sealed against damage, and loading one never runs code."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import check_stored, replacing

_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, and its SHA-256 as its comment: torch.load reads one as well as the other."""
    body = archive[:-2] + _SEAL_LENGTH.to_bytes(2, "little")  # an archive ends with the length of its comment
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def unsealed(content: bytes) -> io.BytesIO:
    """What :func:`sealed` made, if it is undamaged and takes no more memory than the file has bytes.

    Raises:
        ValueError: Says in words what is wrong with it.
    """
    body, seal = content[:-_SEAL_LENGTH], content[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        raise ValueError("it does not end with a seal of `mim4dd fit`")
    if seal != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("it is damaged: its SHA-256 is another than the one it ends with")
    check_stored(io.BytesIO(content))
    return io.BytesIO(content)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; reads with ``weights_only=True`` from local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        # Through memory, because torch's own writer reports a full disk as an internal error.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(sealed(buffer.getvalue()))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if not Path(path).is_file():
            raise StoredFileError(f"No checkpoint {path}. Give a local .ckpt file, or --ckpt_path last.")
        try:
            with warnings.catch_warnings():
                # Of a pickle protocol that we do not write: the file is refused below, in our words.
                warnings.simplefilter("ignore", UserWarning)
                content = unsealed(Path(path).read_bytes())
                checkpoint: dict[str, Any] = torch.load(content, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch's reader of a damaged file raises whatever it stumbles upon
            reason = str(error).strip().split("\n")[0]
            raise StoredFileError(f"{path} is no readable checkpoint ({reason}). Use another one.") from error
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
