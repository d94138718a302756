"""How long a data set takes to load, the first time and the second, and what memory random batches of it take.

    python -m benchmarks.loading                      # 100,000 JPEG files of 64x64 in a folder tree
    python -m benchmarks.loading --kind npz

A synthetic set in a temporary folder, with a hundredth as many test images. Each load is a process of its own, imports
not counted; both find the files in the page cache, as they were just written. Memory is RssAnon: pages that are the
process's own and not those of a mapped file.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.rig import print_table
from mim4dd_pl.data.folder import ImageFolder
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sources import Source
from mim4dd_pl.modules.data import ImageDataModule

CLASSES, BATCHES, BATCH_SIZE = 10, 200, 256


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kind", choices=["folder", "npz"], default="folder")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(load(options.load, options.kind)))
        return
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, one run")
        write(Path(folder), options.kind, options.images)
        command = [sys.executable, "-m", "benchmarks.loading", "--kind", options.kind, "--load", folder]
        rows = []
        for name in ("first", "second"):
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            measured = json.loads(result.stdout.splitlines()[-1])
            rows.append([name, *(f"{measured[key]:.1f}" for key in ("seconds", "loading", "drawing"))])
    header = ["load", "s", "RssAnon MiB, loading", f"RssAnon MiB, {BATCHES} random batches of {BATCH_SIZE}"]
    print_table(f"{options.kind}, {options.images:,} images of 64x64", header, rows)


def load(folder: Path, kind: str) -> dict[str, float]:
    """Seconds of one load, and MiB by which it and random batches grow the process."""
    torch.zeros(BATCH_SIZE, 3, 64, 64).float()  # what any batch takes is no part of the question
    before, started = _anonymous(), time.perf_counter()
    source: Source = Npz(str(folder / "set.npz")) if kind == "npz" else ImageFolder(str(folder / "set"), 64)
    data = ImageDataModule(source, cache=str(folder / "cache"))
    data.setup()
    seconds, loaded = time.perf_counter() - started, _anonymous()
    generator = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        data.train.batch(torch.randint(len(data.train), (BATCH_SIZE,), generator=generator))
    return {"seconds": seconds, "loading": loaded - before, "drawing": _anonymous() - loaded}


def write(folder: Path, kind: str, images: int) -> None:
    """A set of coarse noise."""
    labels = np.arange(images) % CLASSES
    if kind == "npz":
        pixels = np.concatenate([_pictures(start) for start in range(0, images, 1000)])[:images]
        few = max(CLASSES, images // 100)
        np.savez(folder / "set.npz", x_train=pixels, y_train=labels, x_test=pixels[:few], y_test=labels[:few])
        return
    for split, count in (("train", images), ("test", max(CLASSES, images // 100))):
        for label in range(CLASSES):
            (folder / "set" / split / str(label)).mkdir(parents=True)
        for start in range(0, count, 1000):
            for number, picture in enumerate(_pictures(start)[: count - start], start=start):
                path = folder / "set" / split / str(labels[number]) / f"{number}.jpeg"
                Image.fromarray(picture).save(path, quality=90)


def _pictures(seed: int) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (1000, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def _anonymous() -> float:
    """MiB; Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
