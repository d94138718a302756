"""Expert trajectories on disk: one safetensors file per expert and a manifest that says what they are.

A trajectory is the expert's parameters after every epoch, shape (epochs + 1, P) float32; row 0 is the initialisation.
Two rows of it, a :class:`Segment`, are read at a time without loading the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import check_sha256, locked, read_json, replacing, sha256, write_text
from mim4dd_pl.basics.identity import difference, text

SCHEMA = 3

Storage = Literal["float32", "bfloat16"]


class Segment(NamedTuple):
    """An expert's parameters at epoch t and at epoch t + M, each of shape (P,)."""

    start: Tensor
    target: Tensor


@dataclass(frozen=True)
class TrajectorySpec:
    """What the experts of one store have in common; two stores fit each other when these agree.

    Args:
        data_set: Name of the data set.
        data_fingerprint: SHA-256 of its training images and labels.
        network: Class and settings of the architecture, from :func:`~mim4dd_pl.basics.identity.identity`; as a manifest
            says it, a plain dict, or the text of schema 2.
        num_parameters: P.
        training: Likewise of the training of one expert.
        epochs: Epochs after the initialisation.
        seed: Seed of the experts.
        storage: Type of the stored parameters.
    """

    data_set: str
    data_fingerprint: str
    network: dict[str, Any] | str
    num_parameters: int
    training: dict[str, Any] | str
    epochs: int
    seed: int
    storage: Storage = "float32"


def _file_of(expert: int) -> str:
    return f"expert_{expert:04d}.safetensors"


def _text_of_schema_2(settings: Mapping[str, Any]) -> str:
    """What schema 2 has in place of settings: their text, a radius of sharpness behind the parenthesis."""
    others = {key: value for key, value in settings.items() if key != "sharpness_radius"}
    radius = settings.get("sharpness_radius")
    return f"{text(others)}, sharpness_radius={radius}" if radius else text(others)


class TrajectoryStore:
    """The finished experts of one folder.

    Opening checks that the folder fits ``spec``, and that every file is what was written and holds an expert. An
    expert appears in the manifest once its file is whole, so an interrupted training keeps the finished ones.

    Args:
        root: The folder; created with the first expert.
        spec: What the experts must be.

    Raises:
        StoredFileError: If the folder holds other experts, or a file is damaged; named in the message.
    """

    def __init__(self, root: Path, spec: TrajectorySpec) -> None:
        self.root = root
        self.spec = spec
        self._read_only = False
        self._entries: dict[int, dict[str, str]] = {}
        if self._manifest.exists():
            self.refresh()
            for entry in self._entries.values():
                path = self.root / entry["file"]
                check_sha256(path, entry["sha256"], self._remedy)
                self._check_rows(path)

    @classmethod
    def open(cls, root: str | Path) -> "TrajectoryStore":
        """The experts of a folder, whatever they are, for reading: ``spec`` is what its manifest says.

        Everything is checked as it is with a given ``spec``. Rows are read with :meth:`segment`, of the experts that
        :attr:`finished` numbers.

        Args:
            root: The folder.

        Raises:
            StoredFileError: If it holds no experts, or a file is damaged; named in the message.
        """
        root = Path(root)
        if not (root / "manifest.json").exists():
            raise StoredFileError(f"{root} holds no expert trajectories: there is no manifest.json in it.")
        found = _read(root)
        store = cls(root, TrajectorySpec(**{field.name: found[field.name] for field in fields(TrajectorySpec)}))
        store._read_only = True
        return store

    @property
    def finished(self) -> list[int]:
        """Numbers of the experts that are there, ascending."""
        return sorted(self._entries)

    def add(self, expert: int, trajectory: Tensor) -> None:
        """Keep a finished expert; if another process has finished it meanwhile, theirs stays.

        Args:
            expert: Its number.
            trajectory: Shape (epochs + 1, P).

        Raises:
            StoredFileError: If it cannot be written; what was there before is unchanged.
        """
        if self._read_only:
            raise RuntimeError(f"The store of {self.root} was opened for reading: build it with a TrajectorySpec.")
        expected = (self.spec.epochs + 1, self.spec.num_parameters)
        if tuple(trajectory.shape) != expected:
            raise ValueError(f"A trajectory of this store has shape {expected}, got {tuple(trajectory.shape)}.")
        path = self.root / _file_of(expert)
        with locked(self.root):
            # Another run may share the folder: keep what it has finished, this expert included.
            self.refresh()
            if expert in self._entries:
                return
            with replacing(path) as temporary:
                stored = trajectory.to("cpu", getattr(torch, self.spec.storage)).contiguous()
                save_file({"trajectory": stored}, temporary)
            self._entries[expert] = {"file": path.name, "sha256": sha256(path)}
            manifest = {
                "schema": SCHEMA,
                **vars(self.spec),
                "experts": {str(number): self._entries[number] for number in self.finished},
            }
            write_text(self._manifest, json.dumps(manifest, indent=2) + "\n")

    def refresh(self) -> None:
        """See the experts that other processes have finished."""
        if self._manifest.exists():
            found = _read(self.root)
            self._check_spec(found)
            self._entries = found["experts"]

    def segment(self, expert: int, start_epoch: int, expert_epochs: int) -> Segment:
        """Two rows of one trajectory, read from the disk.

        Args:
            expert: A finished expert.
            start_epoch: t.
            expert_epochs: M; t + M must not exceed the epochs of the store.
        """
        path = self.root / self._entries[expert]["file"]
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("trajectory")
                segment = Segment(rows[start_epoch].float(), rows[start_epoch + expert_epochs].float())
        except (OSError, SafetensorError) as error:
            raise StoredFileError(f"{path} cannot be read: {error}. {self._remedy}") from error
        # With numpy: torch would start a second team of threads for the thread that reads ahead.
        if not all(np.isfinite(row.numpy()).all() for row in segment):
            raise StoredFileError(f"{path} holds parameters that are not finite: the expert diverged. {self._remedy}")
        return segment

    @property
    def _manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def _remedy(self) -> str:
        return _remedy(self.root)

    def _check_rows(self, path: Path) -> None:
        """Refuse a file that is no trajectory of this store, or holds one that diverged; reads a row at a time."""
        expected = (self.spec.epochs + 1, self.spec.num_parameters)
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("trajectory")
                shape = tuple(rows.get_shape())
                finite = shape == expected and all(bool(rows[row].float().sum().isfinite()) for row in range(shape[0]))
        except (OSError, SafetensorError) as error:
            raise StoredFileError(f"{path} cannot be read: {error}. {self._remedy}") from error
        if shape != expected:
            raise StoredFileError(f"{path} holds a trajectory of shape {shape}, expected {expected}. {self._remedy}")
        if not finite:
            raise StoredFileError(f"{path} holds parameters that are not finite: the expert diverged. {self._remedy}")

    def _check_spec(self, found: dict[str, Any]) -> None:
        """Refuse experts that are not those of ``spec``, by the first setting that differs."""
        for name, wanted in vars(self.spec).items():
            if found["schema"] == 2 and isinstance(wanted, dict):
                wanted = _text_of_schema_2(wanted)
            if differing := difference(found[name], wanted, name.replace("_", " ")):
                name, theirs, ours = differing
                raise StoredFileError(
                    f"The trajectories of {self._manifest} do not fit: their {name} is {text(theirs):.200}, this run's "
                    f"is {text(ours)}. Use the same data set, network and expert settings, or use another "
                    "folder."
                )


def _read(root: Path) -> dict[str, Any]:
    """The manifest of a folder, its experts by number; refused if it is none."""
    manifest = root / "manifest.json"
    try:
        found: dict[str, Any] = read_json(manifest)
        found["experts"] = {
            int(number): {"file": str(entry["file"]), "sha256": str(entry["sha256"])}
            for number, entry in found["experts"].items()
        }
        whole = all(isinstance(found[name], int) for name in ("schema", "num_parameters", "epochs"))
        if not whole or not found.keys() >= {field.name for field in fields(TrajectorySpec)}:
            raise ValueError("it does not say what the experts are")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{manifest} is damaged ({error!r:.200}). {_remedy(root)}") from error
    if found["schema"] not in (2, SCHEMA):
        raise StoredFileError(f"{manifest} is of schema {found['schema']}, expected {SCHEMA}. {_remedy(root)}")
    for number, entry in found["experts"].items():
        if entry["file"] != _file_of(number):
            raise StoredFileError(
                f"{manifest} is damaged: it names {entry['file']:.80}, expected {_file_of(number)}. {_remedy(root)}"
            )
    return found


def _remedy(root: Path) -> str:
    return f"Delete {root} to train the experts anew, or use another folder."
