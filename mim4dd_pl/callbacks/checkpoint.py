"""Checkpoints that are whole or absent, and load without running code."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO

from mim4dd_pl.errors import StoredFileError
from mim4dd_pl.files import replacing


class Checkpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run, from which it resumes to the bit.

    Args:
        every_n_steps: Outer steps between two of them.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Checkpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        super().__init__(filename="last", every_n_train_steps=every_n_steps, enable_version_counter=False)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; reads with ``weights_only=True`` from local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if "://" in str(path):
            raise StoredFileError(f"Checkpoints are read from local files, got {path}: download it first.")
        if not Path(path).is_file():
            raise StoredFileError(f"No checkpoint {path}. Give a .ckpt file, or --ckpt_path last.")
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).strip().split("\n")[0]
            raise StoredFileError(f"{path} is no readable checkpoint: {reason} Use another one.") from error
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
