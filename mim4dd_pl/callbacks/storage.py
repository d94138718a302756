"""Checkpoint files: whole or absent, and loading one never runs code."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from mim4dd_pl.errors import StoredFileError
from mim4dd_pl.files import replacing


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; reads with ``weights_only=True`` from local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        # Through memory, because torch's own writer reports a full disk as an internal error.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if not Path(path).is_file():
            raise StoredFileError(f"No checkpoint {path}. Give a local .ckpt file, or --ckpt_path last.")
        try:
            with warnings.catch_warnings():
                # Of a pickle protocol that we do not write: the file is refused below, in our words.
                warnings.simplefilter("ignore", UserWarning)
                checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch's reader of a damaged file raises whatever it stumbles upon
            reason = str(error).strip().split("\n")[0]
            raise StoredFileError(f"{path} is no readable checkpoint ({reason}). Use another one.") from error
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
