"""Checkpoints that are whole or absent, and load without running code."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from mim4dd_pl.errors import StoredFileError
from mim4dd_pl.files import replacing


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run, from which it resumes to the bit.

    Args:
        every_n_steps: Outer steps between two of them; each validation is followed by one as well.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"LastCheckpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Where a validation follows, the checkpoint waits for it: a resumed run would not make up for it.
        validates = trainer.enable_validation and trainer.global_step % (trainer.val_check_batch or math.inf) == 0
        if trainer.global_step % self.every_n_steps == 0 and not validates:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    @staticmethod
    def _save(trainer: L.Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt")


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
