"""Data that cannot be used: one line on stderr, exit code 3, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mim4dd_pl.app.cli import main
from tests.conftest import CONFIGS
from tests.fakes import noise, trust_fakes, write_pictures, write_torchvision

Arguments = list[str]
SOURCE = "--data.source.init_args."


def folder(*arguments: str) -> Arguments:
    return ["--data.source=ImageFolder", f"{SOURCE}root=pets", f"{SOURCE}image_size=8", *arguments]


def npz(*arguments: str) -> Arguments:
    return ["--data.source=Npz", f"{SOURCE}path=set.npz", *arguments]


def torchvision(name: str) -> Arguments:
    return [f"--data.source={name}", f"{SOURCE}root=data", f"{SOURCE}download=false"]


def pets(cats: int = 20, dogs: int = 20) -> None:
    for split in ("train", "test"):
        write_pictures(Path("pets") / split / "cat", cats)
        write_pictures(Path("pets") / split / "dog", dogs)


def save(side: int = 8, **arrays: npt.NDArray[Any] | None) -> None:
    """A good file but for ``arrays``; None leaves one out."""
    labels = np.arange(40) % 2
    good: dict[str, Any] = {
        "x_train": noise(40, side, side),
        "y_train": labels,
        "x_test": noise(40, side, side),
        "y_test": labels,
    }
    kept = {key: array for key, array in {**good, **arrays}.items() if array is not None}
    np.savez("set.npz", **kept)


def empty() -> None:
    (Path("pets") / "train").mkdir(parents=True)
    (Path("pets") / "test").mkdir()


def one_class() -> None:
    for split in ("train", "test"):
        write_pictures(Path("pets") / split / "cat", 20)


def truncated() -> None:
    pets()
    path = Path("pets/train/dog/13.jpg")
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:900])


def deep_pixels() -> None:
    pets()
    Image.fromarray(np.zeros((9, 9), np.int32), mode=None).save("pets/test/dog/13.tiff")


def no_classes_in_test() -> None:
    pets()
    Path("pets/test").rename("pets/set aside")


def short_svhn() -> None:
    write_torchvision(Path("data"), "SVHN", train=100, test=10)
    Path("data/test_32x32.mat").unlink()


CASES: list[tuple[Callable[[], object], Arguments, str]] = [
    (empty, folder(), "pets/train holds no class folders"),
    (lambda: None, folder(), "No folder pets/train"),
    (no_classes_in_test, folder(), "pets has neither test/ nor val/ beside train/"),
    (one_class, folder(), "pets has 1 class, at least 2 are needed"),
    (lambda: pets(dogs=0), folder(), "pets/train/dog holds no pictures, expected some of"),
    (lambda: pets(dogs=1), folder(), "pets: class dog has 1 training images, at least 2 are needed"),
    (truncated, folder(), "pets/train/dog/13.jpg cannot be read as an image"),
    (deep_pixels, folder(), "pets/test/dog/13.tiff has pixels of mode I, expected 8 bits a channel"),
    (
        pets,
        folder(f"{SOURCE}classes=[cat, cow]"),
        "data.source.classes names cow, which pets/train lacks; it has cat, dog",
    ),
    (pets, folder(f"{SOURCE}classes=[cat]"), "pets has 1 class, at least 2 are needed"),
    (pets, folder("--model.init_args.images_per_class=19"), "19 real images per class are asked for, class 0 has 18"),
    (lambda: pets(dogs=8), folder("--model.init_args.images_per_class=8"), "class 1 has 7 training images"),
    (pets, folder("--data.zca=true", f"{SOURCE}image_size=224"), "data.zca takes images of up to 4,096 numbers"),
    (pets, folder("--data.max_train_images=1"), "data.max_train_images must lie in 2..36 for pets, got 1"),
    (lambda: save(y_train=np.arange(40) % 2 - 1), npz(), "y_train of set.npz lie in -1..0, expected 0..C-1"),
    (lambda: save(y_train=np.arange(40) % 2 * 99), npz(), "y_train of set.npz lie in 0..99, expected 0..C-1"),
    (lambda: save(y_train=np.arange(40) % 2 * 2), npz(), "set: class 1 has 0 training images, at least 2 are needed"),
    (lambda: save(y_test=np.arange(40) % 3), npz(), "set: test labels lie in 0..2, expected 0..1"),
    (lambda: save(y_test=np.arange(39) % 2), npz(), "set has 40 images and 39 labels in a split"),
    (lambda: save(x_test=None, y_test=None), npz(), "set.npz lacks x_test, y_test"),
    (lambda: save(side=65), npz("--data.zca=true"), "those of set have 4,225 (1x65x65)"),
    (lambda: Path("set.npz").write_bytes(b"PK\x03\x04 cut"), npz(), "set.npz is no readable .npz file"),
    (lambda: None, torchvision("CIFAR10"), "No CIFAR10 in data"),
    (short_svhn, torchvision("SVHN"), "No SVHN in data"),
]


@pytest.mark.parametrize(("prepare", "arguments", "message"), CASES, ids=[case[2] for case in CASES])
def test_bad_data_are_one_line_with_exit_code_3_and_leave_nothing(
    prepare: Callable[[], object],
    arguments: Arguments,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trust_fakes(monkeypatch)
    prepare()
    before = sorted(tmp_path.rglob("*"))
    assert main(["fit", "-c", str(CONFIGS / "distill/digits.yaml"), *arguments]) == 3
    stderr = capsys.readouterr().err
    assert stderr.startswith("mim4dd: error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert len(stderr) < 500
    assert sorted(tmp_path.rglob("*")) == before
