"""Expert trajectories on disk: one safetensors file per expert and a manifest that says what they are.

A trajectory is the expert's parameters after every epoch, shape (epochs + 1, P) float32; row 0 is the initialisation.
Two rows of it, a :class:`Segment`, are read at a time without loading the rest.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
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


_FIELDS = [field.name for field in fields(TrajectorySpec)]


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
        self._hashes: dict[int, str] = {}
        self.refresh()
        for expert, expected in self._hashes.items():
            check_sha256(root / _file_of(expert), expected, _remedy(root))
            for _ in self._rows(expert, range(spec.epochs + 1)):
                pass

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
        found, _ = _read(root)
        store = cls(root, TrajectorySpec(**{name: found[name] for name in _FIELDS}))
        store._read_only = True
        return store

    @property
    def finished(self) -> list[int]:
        """Numbers of the experts that are there, ascending."""
        return sorted(self._hashes)

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
        if tuple(trajectory.shape) != self._shape:
            raise ValueError(f"A trajectory of this store has shape {self._shape}, got {tuple(trajectory.shape)}.")
        path = self.root / _file_of(expert)
        with locked(self.root):
            # Another run may share the folder: keep what it has finished, this expert included.
            self.refresh()
            if expert in self._hashes:
                return
            with replacing(path) as temporary:
                stored = trajectory.to("cpu", getattr(torch, self.spec.storage)).contiguous()
                save_file({"trajectory": stored}, temporary)
            self._hashes[expert] = sha256(path)
            experts = {
                str(number): {"file": _file_of(number), "sha256": self._hashes[number]} for number in self.finished
            }
            manifest = {"schema": SCHEMA, **vars(self.spec), "experts": experts}
            write_text(self.root / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def refresh(self) -> None:
        """See the experts that other processes have finished."""
        if (self.root / "manifest.json").exists():
            found, hashes = _read(self.root)
            self._check_spec(found)
            self._hashes = hashes

    def segment(self, expert: int, start_epoch: int, expert_epochs: int) -> Segment:
        """Two rows of one trajectory, read from the disk.

        Args:
            expert: A finished expert.
            start_epoch: t.
            expert_epochs: M; t + M must not exceed the epochs of the store.
        """
        return Segment(*self._rows(expert, (start_epoch, start_epoch + expert_epochs)))

    @property
    def _shape(self) -> tuple[int, int]:
        return self.spec.epochs + 1, self.spec.num_parameters

    def _rows(self, expert: int, epochs: Iterable[int]) -> Iterator[Tensor]:
        """Some rows, one at a time; refuses a file that is no trajectory of this store, or holds one that diverged."""
        path = self.root / _file_of(expert)
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("trajectory")
                if (shape := tuple(rows.get_shape())) != self._shape:
                    raise _refusal(path, f"holds a trajectory of shape {shape}, expected {self._shape}")
                for epoch in epochs:
                    row = rows[epoch].float()
                    # With numpy: torch would start a second team of threads for the thread that reads ahead.
                    if not np.isfinite(row.numpy()).all():
                        raise _refusal(path, "holds parameters that are not finite: the expert diverged")
                    yield row
        except (OSError, SafetensorError) as error:
            raise _refusal(path, f"cannot be read: {error}") from error

    def _check_spec(self, found: dict[str, Any]) -> None:
        """Refuse experts that are not those of ``spec``, by the first setting that differs."""
        for name, wanted in vars(self.spec).items():
            if found["schema"] == 2 and isinstance(wanted, dict):
                wanted = _text_of_schema_2(wanted)
            if differing := difference(found[name], wanted, name.replace("_", " ")):
                name, theirs, ours = differing
                raise StoredFileError(
                    f"The trajectories of {self.root}/manifest.json do not fit: their {name} is {text(theirs):.200}, "
                    f"this run's is {text(ours)}. Use the same data set, network and expert settings, or use another "
                    "folder."
                )


def _read(root: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The manifest of a folder, and the SHA-256 of each expert by its number; refused if it is none."""
    manifest = root / "manifest.json"
    try:
        found: dict[str, Any] = read_json(manifest)
        experts = {int(number): entry for number, entry in found["experts"].items()}
        whole = all(isinstance(found[name], int) for name in ("schema", "num_parameters", "epochs"))
        if not whole or not found.keys() >= set(_FIELDS):
            raise ValueError("it does not say what the experts are")
        for number, entry in experts.items():
            if entry["file"] != _file_of(number):
                raise ValueError(f"it names {entry['file']!s:.80}, expected {_file_of(number)}")
        hashes = {number: str(entry["sha256"]) for number, entry in experts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(manifest, f"is damaged ({error!r:.200})") from error
    if found["schema"] not in (2, SCHEMA):
        raise _refusal(manifest, f"is of schema {found['schema']}, expected {SCHEMA}")
    return found, hashes


def _refusal(path: Path, reason: str) -> StoredFileError:
    return StoredFileError(f"{path} {reason}. {_remedy(path.parent)}")


def _remedy(root: Path) -> str:
    return f"Use another folder or, if {root} holds nothing but experts, delete it to train them anew."
