"""A short fit that can be killed and begun again, and what it leaves behind."""

import json
import multiprocessing
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mim4dd_pl.app.cli import main as mim4dd
from mim4dd_pl.basics.files import readable, sha256
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from mim4dd_pl.stored.artefact import read_distilled
from mim4dd_pl.stored.trajectories import TrajectoryStore

EVERY, STEPS = 3, 24
_CONTEXT = multiprocessing.get_context("fork")  # a run starts in no time, its libraries being there


class Watch(L.Callback):
    """Writes the number of steps made so far to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._file, struct.pack("<q", trainer.global_step), 0)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            os.pwrite(self._file, struct.pack("<q", trainer.global_step), 0)


class Run:
    """A run in a folder of its own, which can be begun again and again.

    Args:
        folder: Empty.
        processes: How many share it.
    """

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self.folder = folder
        self.processes = processes
        self.begun = 0.0
        folder.mkdir(parents=True)

    @property
    def checkpoint(self) -> Path:
        """Of its latest version, whether it is there or not."""
        found = [run.checkpoint("last") for run in RunFolder.versions(self.folder / "digits")]
        return next((path for path in found if path.exists()), self.folder / "none")

    def begin(self) -> "multiprocessing.process.BaseProcess":
        """Start, or go on where it was."""
        recipes = ("distill/digits", "with/mutual_information", "with/soft_labels", "with/smoke")
        callbacks = [
            {"class_path": "Evaluation", "init_args": {"num_students": 2, "training": {"epochs": 3}}},
            {"class_path": "Export"},
            {"class_path": "LastCheckpoint", "init_args": {"every_n_steps": EVERY}},
            {"class_path": "benchmarks.victims.Watch", "init_args": {"path": str(self.folder / "steps")}},
        ]
        arguments = [
            *("fit", *(part for recipe in recipes for part in ("-c", f"configs/{recipe}.yaml"))),
            *("--model.segments_per_step=2", "--model.compile=false", "--threads=1"),
            *(f"--trainer.devices={self.processes}", "--trainer.accelerator=cpu"),
            *(f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=8"),
            *(f"--model.experts.root={self.folder}/experts", f"--trainer.logger.init_args.save_dir={self.folder}"),
            f"--trainer.callbacks={json.dumps(callbacks)}",
            *(["--ckpt_path=last"] if self.checkpoint.exists() else []),
        ]
        self.begun = time.monotonic()
        process = _CONTEXT.Process(target=_fit, args=(arguments, self.folder / "log"))
        process.start()
        return process

    def steps(self) -> int:
        """Steps that the images had made when it ended."""
        path = self.folder / "steps"
        content = path.read_bytes() if path.exists() else b""
        return int(struct.unpack("<q", content)[0]) if len(content) == 8 else 0

    def kept(self) -> int:
        """Steps in its checkpoint."""
        if not self.checkpoint.exists():
            return 0
        return int(AtomicCheckpointIO().load_checkpoint(self.checkpoint)["global_step"])

    def check_files(self) -> None:
        """Read everything that a killed run has left.

        Raises:
            StoredFileError: If something is damaged.
        """
        self.kept()
        if (self.folder / "experts/manifest.json").exists():
            TrajectoryStore.open(self.folder / "experts")
        for run in RunFolder.versions(self.folder / "digits"):
            for folder in map(run.distilled, ("best", "last")):
                if readable(folder).exists():
                    read_distilled(readable(folder))

    def outcome(self) -> dict[str, Any]:
        """Everything that must agree with another run."""
        run = RunFolder.of_checkpoint(self.checkpoint)
        checkpoint = AtomicCheckpointIO().load_checkpoint(self.checkpoint)
        files = [sha256(run.distilled(which) / "manifest.json") for which in ("best", "last")]
        tensors = [checkpoint["state_dict"], [state["state"] for state in checkpoint["optimizer_states"]]]
        return {"step": checkpoint["global_step"], "files": files, "tensors": tensors}


def _fit(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(mim4dd(arguments))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two outcomes agree to the bit."""
    try:
        torch.testing.assert_close(first["tensors"], second["tensors"], rtol=0, atol=0)
    except AssertionError:
        return False
    return (first["step"], first["files"]) == (second["step"], second["files"])
