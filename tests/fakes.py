"""Tiny files in the formats of the published data sets, of noise: no test downloads anything."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mim4dd_pl.data.torchvision import CIFAR100


def write_torchvision(root: Path, name: str, train: int = 2000, test: int = 200) -> None:
    """The files that torchvision reads for the source ``name``, e.g. CIFAR10; labels go round the classes."""
    _WRITERS[name](root, name, {"train": train, "test": test})


def trust_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take files whose MD5 is not that of the published ones; they must exist all the same."""
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    """Bytes that are the same for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (12, 9), suffix: str = "png") -> None:
    """Pictures ``0.png, 1.png, ...`` of noise, in turn in colour, grey and transparent."""
    folder.mkdir(parents=True)
    for number in range(count):
        mode, channels = (("RGB", 3), ("L", 0), ("RGBA", 4))[number % 3 if suffix == "png" else 0]
        pixels = noise(size[1], size[0], *([channels] if channels else []))
        Image.fromarray(pixels, mode=None).convert(mode).save(folder / f"{number}.{suffix}")


def _write_idx(root: Path, name: str, counts: dict[str, int]) -> None:
    """Magic number, sizes, bytes (LeCun et al. 1998)."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", counts["train"]), ("t10k", counts["test"])):
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, magic, array in (("images-idx3", 2051, noise(count, 28, 28)), ("labels-idx1", 2049, labels)):
            header = np.array([magic, *array.shape], dtype=">i4").tobytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())


def _write_svhn(root: Path, name: str, counts: dict[str, int]) -> None:
    """MATLAB files with X (32, 32, 3, N) and y (N, 1), where 10 stands for the digit 0."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        labels = (np.arange(count) % 10).astype(np.uint8)
        labels[labels == 0] = 10
        savemat(root / f"{split}_32x32.mat", {"X": noise(32, 32, 3, count), "y": labels[:, None]})


def _write_cifar10(root: Path, name: str, counts: dict[str, int]) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = {f"data_batch_{number}": counts["train"] // 5 for number in range(1, 6)}
    for file, count in {**batches, "test_batch": counts["test"]}.items():
        _pickle(folder / file, {"data": noise(count, 3072), "labels": [row % 10 for row in range(count)]})
    _pickle(folder / "batches.meta", {"label_names": [str(label) for label in range(10)]})


def _write_cifar100(root: Path, name: str, counts: dict[str, int]) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, count in counts.items():
        _pickle(folder / split, {"data": noise(count, 3072), "fine_labels": [row % 100 for row in range(count)]})
    _pickle(folder / "meta", {"fine_label_names": list(CIFAR100.classes)})


def _pickle(path: Path, content: dict[str, object]) -> None:
    path.write_bytes(pickle.dumps(content))


_WRITERS: dict[str, Callable[[Path, str, dict[str, int]], None]] = {
    "MNIST": _write_idx,
    "FashionMNIST": _write_idx,
    "KMNIST": _write_idx,
    "SVHN": _write_svhn,
    "CIFAR10": _write_cifar10,
    "CIFAR100": _write_cifar100,
}
TORCHVISION = tuple(_WRITERS)
"""The sources that ``write_torchvision`` knows."""
