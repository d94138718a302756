"""Images are decoded once, are found again to the bit, and are decoded anew when anything has changed."""

import json
import math
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mim4dd_pl.basics import machine
from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.data.cache import Cache, _mapped
from mim4dd_pl.data.folder import ImageFolder
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sources import Digits, Source, Split
from mim4dd_pl.modules.data import ImageDataModule
from tests.fakes import noise, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten and four pictures of each of two classes."""
    for label in ("cat", "dog"):
        write_pictures(tmp_path / "pets/train" / label, 10)
        write_pictures(tmp_path / "pets/test" / label, 4)
    return tmp_path / "pets"


class Counted(ImageFolder):
    """Counts how often its pictures are decoded."""

    decoded = 0

    def _decode(self, path: str) -> torch.Tensor:
        Counted.decoded += 1
        return super()._decode(path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(Counted, "decoded", 0)
    return Counted


def load(source: Source, root: Path | None) -> ImageDataModule:
    data = ImageDataModule(source, cache=None if root is None else str(root / "cache"))
    data.setup()
    return data


def test_the_second_time_nothing_is_decoded_and_all_is_the_same(
    folder: Path, tmp_path: Path, counted: type[Counted]
) -> None:
    first, again = (load(counted(str(folder), 8), tmp_path) for _ in range(2))
    assert counted.decoded == 28
    for one, other in ((first.train, again.train), (first.validation, again.validation), (first.test, again.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.fingerprint() == other.fingerprint()


def test_in_memory_and_on_the_disk_are_the_same(folder: Path, tmp_path: Path) -> None:
    mapped, memory = load(ImageFolder(str(folder), 8), tmp_path), load(ImageFolder(str(folder), 8), None)
    assert torch.equal(mapped.train.images, memory.train.images)
    assert mapped.train.fingerprint() == memory.train.fingerprint()
    assert mapped.test.fingerprint() == memory.test.fingerprint()


def test_images_of_another_rule_are_decoded_anew(
    folder: Path, tmp_path: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in ("", "upright, on white", "", "upright, on white"):
        monkeypatch.setattr(counted, "rule", rule)
        load(counted(str(folder), 8), tmp_path)
    assert ImageFolder.rule == "upright, on white"
    assert counted.decoded == 56


def test_images_that_are_not_kept_must_fit_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 5000 / 2**30)
    with pytest.raises(DataError, match=r"pets needs 0\.0 GiB of memory, .* keep its images in a folder \(cache\)"):
        load(ImageFolder(str(folder), 8), None)  # 28 pictures of 192 bytes


def test_the_cache_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    load(ImageFolder(str(folder), 8), tmp_path)
    (about,) = tmp_path.glob("cache/*/about.json")
    content = json.loads(about.read_text())
    assert about.parent.name.startswith("pets-")
    assert (content["classes"], content["image_shape"]) == (["cat", "dog"], [3, 8, 8])
    assert {name: (about.parent / name).stat().st_size for name in content["bytes"]} == content["bytes"]
    assert all(len(digest) == 64 for digest in content["sha256"].values())


def test_a_moved_set_is_known_and_a_changed_one_is_not(folder: Path, tmp_path: Path, counted: type[Counted]) -> None:
    def total() -> int:
        load(counted(str(folder), 8), tmp_path)
        return counted.decoded

    assert total() == 28
    folder = folder.rename(tmp_path / "elsewhere").rename(tmp_path / "pets")
    assert total() == 28
    os.utime(folder / "test/cat/0.png", ns=(0, 0))
    assert total() == 56
    load(counted(str(folder), 6), tmp_path)
    assert counted.decoded == 84
    load(counted(str(folder), 8, classes=["dog", "cat"]), tmp_path)
    assert counted.decoded == 112
    assert len(list(tmp_path.glob("cache/pets-*"))) == 4


def test_other_content_behind_the_same_names_sizes_and_times_is_decoded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An npz file whose labels are exchanged, and the last of many pictures."""
    labels = np.arange(4000) % 2
    for number in (0, 1):
        np.savez(tmp_path / "set.npz", x_train=noise(4000, 64, 64), y_train=(labels + number) % 2,
                 x_test=noise(40, 64, 64), y_test=labels[:40])  # fmt: skip
        os.utime(tmp_path / "set.npz", ns=(0, 0))
        train = load(Npz(str(tmp_path / "set.npz")), tmp_path).train
        assert torch.equal(train.labels, (torch.from_numpy(labels)[train.rows] + number) % 2)
    assert "is decoded anew: the files have changed, though their names, sizes and times have not" in caplog.text
    assert len(list(tmp_path.glob("cache/set-*"))) == 1


def test_a_changed_picture_of_the_same_size_and_time_is_decoded_anew(folder: Path, tmp_path: Path) -> None:
    before = load(ImageFolder(str(folder), 8), tmp_path).test.images.clone()
    path = folder / "test/dog/3.bmp"
    for grey in (9, 200):
        Image.new("L", (9, 9), grey).save(path)
        os.utime(path, ns=(0, 0))
        after = load(ImageFolder(str(folder), 8), tmp_path).test.images
        assert after[7].unique().tolist() == [grey]
        assert torch.equal(torch.cat([after[:7], after[8:]]), before)


def test_what_is_taken_from_the_cache_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load(ImageFolder(str(folder), 8), tmp_path)
    assert not any("as it was decoded" in line for line in caplog.messages)
    (path,) = (tmp_path / "cache").iterdir()
    os.utime(path / "about.json", (1e9, 1e9))
    load(ImageFolder(str(folder), 8), tmp_path)
    assert re.fullmatch(rf"pets as it was decoded on 2001-09-0\d \d\d:\d\d into {path}\.", caplog.messages[-1])


def test_a_folder_of_before_the_sample_is_read(folder: Path, tmp_path: Path, counted: type[Counted]) -> None:
    load(counted(str(folder), 8), tmp_path)
    (path,) = tmp_path.glob("cache/*/about.json")
    about = json.loads(path.read_text())
    del about["sample"]
    path.write_text(json.dumps(about))
    load(counted(str(folder), 8), tmp_path)
    assert counted.decoded == 28


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone"])
def test_a_damaged_cache_is_decoded_anew(
    name: str, damage: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = load(ImageFolder(str(folder), 8), tmp_path).train
    whole = replace(before, images=before.images.clone())
    (path,) = tmp_path.glob(f"cache/*/{name}")
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[:-3] if damage == "cut" else content + b"xyz")
    again = load(ImageFolder(str(folder), 8), tmp_path).train
    assert torch.equal(again.images, whole.images)
    assert again.fingerprint() == whole.fingerprint()
    assert path.read_bytes() == content
    assert (name, damage) == ("about.json", "gone") or "is decoded anew" in caplog.text


def test_a_failed_decode_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    (folder / "test/dog/3.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    data = ImageDataModule(ImageFolder(str(folder), 8), cache=str(tmp_path / "deep/in/a/cache"))
    with pytest.raises(DataError, match=r"dog/3\.png cannot be read"):
        data.setup()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_decode_leaves_no_lock(folder: Path, tmp_path: Path) -> None:
    load(ImageFolder(str(folder), 8), tmp_path)
    assert not list((tmp_path / "cache").rglob(".*"))


def _load_in_a_process(folder: Path, root: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    images = load(ImageFolder(str(folder), 8), root).train
    assert images.batch(torch.arange(len(images))).images.isfinite().all()


def test_processes_that_decode_at_once_do_not_hurt_each_other(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_load_in_a_process, args=(folder, tmp_path, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    (only,) = (tmp_path / "cache").iterdir()
    assert len(list(only.glob("*.npy"))) == 4


def test_a_set_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """One and a half times the machine's memory, in a sparse file that takes no space."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shape = (int(1.5 * memory) // (3 * 1024**2), 3, 1024, 1024)
    with (tmp_path / "train_images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + math.prod(shape))
    np.save(tmp_path / "train_labels.npy", np.zeros(shape[0], np.int64))
    images = _mapped(tmp_path, "train", "").images
    assert images.shape == shape
    assert int(images[[0, -1], :, :5, :5].max()) == 0


def test_digits_are_not_kept(tmp_path: Path) -> None:
    load(Digits(), tmp_path)
    assert not list(tmp_path.iterdir())


class Stream(Source):
    """Delivers images one at a time, and says how many were held at once."""

    name, image_shape, classes = "stream", (1, 4, 4), ("a", "b")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.most = 0

    def files(self) -> dict[str, Path]:
        return {self.path.name: self.path}

    def load(self) -> tuple[Split, Split]:
        return (Split(torch.arange(40) % 2, self._chunks()), Split(torch.arange(40) % 2, self._chunks()))

    def _chunks(self) -> Iterator[torch.Tensor]:
        for number in range(40):
            yield torch.full((1, 1, 4, 4), number, dtype=torch.uint8)


def test_a_source_of_ones_own_is_kept_chunk_by_chunk(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("anything")
    data = load(Stream(tmp_path / "raw"), tmp_path)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(40))
    assert Cache(Stream(tmp_path / "raw"), str(tmp_path / "cache")).find() is not None


def test_a_file_that_vanishes_is_named(folder: Path, tmp_path: Path) -> None:
    source = ImageFolder(str(folder), 8)
    source.files()
    shutil.rmtree(folder / "test/cat")
    with pytest.raises(DataError, match=r"test/cat/0\.png cannot be read: No such file"):
        Cache(source, str(tmp_path / "cache"))
