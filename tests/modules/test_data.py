"""The data module splits, normalises and hands out batches; a split copies nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sets import fits, stratified_split
from mim4dd_pl.data.sources import Digits, Source, Split
from mim4dd_pl.modules.data import ImageDataModule
from tests.fakes import noise


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits())
    data.setup()
    return data


@pytest.fixture
def npz(tmp_path: Path) -> Npz:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "set.npz", x_train=noise(60, 6, 6), y_train=labels, x_test=noise(30, 6, 6), y_test=labels[:30])
    return Npz(str(tmp_path / "set.npz"))


def test_digits_are_split_as_documented(digits: ImageDataModule) -> None:
    assert len(digits.train) + len(digits.validation) == 1437
    assert len(digits.test) == 360
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255


def test_splits_are_disjoint_and_stratified(digits: ImageDataModule) -> None:
    labels = torch.cat([digits.train.labels, digits.validation.labels])
    share = torch.bincount(digits.validation.labels) / torch.bincount(labels)
    assert float((share - 0.1).abs().max()) < 0.01
    rows = torch.cat([digits.train.rows, digits.validation.rows])
    assert torch.equal(rows.sort().values, torch.arange(1437))
    kept, held = stratified_split(labels, 144, seed=0)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(1437))


def test_splits_share_the_images_and_a_batch_is_read_through_the_rows(digits: ImageDataModule) -> None:
    assert digits.train.images is digits.validation.images
    chosen = torch.tensor([5, 3])
    batch = digits.validation.batch(chosen)
    rows = digits.validation.rows[chosen]
    pixels = digits.train.images[rows].float() / 255
    assert torch.equal(batch.images, digits.train.normalization(pixels))
    assert torch.equal(batch.labels, digits.validation.labels[chosen])


def test_training_images_are_normalised_by_their_own_statistics(digits: ImageDataModule) -> None:
    x = digits.train.batch(torch.arange(len(digits.train))).images
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(1), atol=1e-4, rtol=0)
    assert digits.validation.normalization is digits.test.normalization is digits.train.normalization


def test_batches_cover_a_split_in_order(digits: ImageDataModule) -> None:
    labels = torch.cat([batch.labels for batch in digits.test_dataloader()])
    assert torch.equal(labels, digits.test.labels)
    assert len(digits.val_dataloader()) == 1


def test_per_class_draws_distinct_images_class_by_class(digits: ImageDataModule, stream: Stream) -> None:
    chosen = digits.train.per_class(3, stream.generator())
    assert torch.equal(digits.train.labels[chosen], torch.arange(10).repeat_interleave(3))
    assert len(chosen.unique()) == 30


def test_per_class_is_the_first_of_each_class_in_a_random_order(digits: ImageDataModule, stream: Stream) -> None:
    """Published numbers depend on these draws."""
    order = torch.randperm(len(digits.train), generator=stream.generator()).tolist()
    labels = digits.train.labels.tolist()
    expected = [next(row for row in order if labels[row] == label) for label in range(10)]
    assert digits.train.per_class(1, stream.generator()).tolist() == expected


def test_more_images_per_class_than_there_are_is_refused(digits: ImageDataModule, stream: Stream) -> None:
    with pytest.raises(DataError, match="10000 real images per class are asked for, class 0 has 128"):
        digits.train.per_class(10_000, stream.generator())


def test_max_train_images_keeps_a_stratified_part() -> None:
    data = ImageDataModule(Digits(), max_train_images=100)
    data.setup()
    assert torch.bincount(data.train.labels).tolist() == [10] * 10
    assert len(data.validation) == 144


def test_choosing_on_the_test_images_trains_on_all_others() -> None:
    data = ImageDataModule(Digits(), validate_on="test")
    data.setup()
    assert len(data.train) == 1437
    assert torch.equal(torch.cat([batch.labels for batch in data.val_dataloader()]), data.test.labels)


def test_fingerprint_sees_one_changed_pixel_one_changed_label_and_other_rows() -> None:
    _, other = Digits().load()
    images, labels = next(iter(other.chunks)).clone(), other.labels.clone()
    images[0, 0, 0, 0] += 1
    labels[0] = (labels[0] + 1) % 10
    prints = set()
    for x in (next(iter(other.chunks)), images):
        for y in (other.labels, labels):
            data = ImageDataModule(Given(Split(y, [x])), validate_on="test")
            data.setup()
            train = data.train
            prints |= {train.fingerprint(), replace(train, rows=train.rows[1:]).fingerprint()}
    assert len(prints) == 8


def test_a_resident_split_gives_the_same_batches_and_keeps_its_fingerprint(digits: ImageDataModule) -> None:
    resident = digits.validation.resident_on(torch.device("cpu"))
    for ours, theirs in zip(resident.batches(50), digits.validation.batches(50), strict=True):
        assert torch.equal(ours.images, theirs.images)
    assert resident.fingerprint() == digits.validation.fingerprint()


@pytest.mark.parametrize(("size", "free", "expected"), [(0, 0, True), (50, 100, True), (51, 100, False)])
def test_pixels_move_to_a_device_if_they_fit_into_half_of_what_is_free(size: int, free: int, expected: bool) -> None:
    assert fits(size, free) is expected


def test_pixels_that_do_not_fit_stay_on_the_host(digits: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without CUDA: what ``to`` asks is how much is free there."""
    asked = []

    def free(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 2 * 360 * 64 - 1, 0

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    moved = digits.test.to(torch.device("cuda:0"))
    assert asked == [torch.device("cuda:0")]
    assert moved.resident is None


def test_a_batch_of_a_mapped_file_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """Pixels stay in the page cache: 48 MB of them, and a process that grows by less than a third of that."""
    np.savez(tmp_path / "large.npz", x_train=noise(12_000, 64, 64), y_train=np.arange(12_000) % 2,
             x_test=noise(2, 64, 64), y_test=np.arange(2))  # fmt: skip
    data = ImageDataModule(Npz(str(tmp_path / "large.npz")), cache=str(tmp_path / "cache"))
    data.setup()
    again = ImageDataModule(data.source, cache=data.cache)
    before = _anonymous()
    again.setup()
    for rows in torch.randperm(len(again.train)).split(64):
        again.train.batch(rows)
    assert _anonymous() - before < 16 * 2**20


def _anonymous() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def test_labels_decide_the_split_before_anything_is_decoded(npz: Npz, tmp_path: Path) -> None:
    data = ImageDataModule(npz, cache=str(tmp_path / "cache"))
    kept, held = data.split()
    assert (len(kept), len(held)) == (54, 6)
    with pytest.raises(DataError, match="19 real images per class are asked for, class 0 has 18 training images"):
        data.check_images_per_class(19)
    assert os.listdir(tmp_path) == ["set.npz"]


class Given(Source):
    """Promises 8x8 pixels and ten classes, and delivers what it is given."""

    name, image_shape, classes = "given", (1, 8, 8), tuple("0123456789")

    def __init__(self, split: Split) -> None:
        self.given = split

    def load(self) -> tuple[Split, Split]:
        return self.given, self.given


class Wrong(Source):
    """Promises one shape and two classes."""

    name, image_shape, classes = "wrong", (1, 4, 4), ("a", "b")

    def __init__(self, side: int, labels: list[int], count: int | None = None) -> None:
        images = torch.zeros(len(labels) if count is None else count, 1, side, side, dtype=torch.uint8)
        self.wrong = Split(torch.tensor(labels, dtype=torch.int64), [images])

    def load(self) -> tuple[Split, Split]:
        return self.wrong, self.wrong


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Wrong(5, [0, 1] * 10), r"images have shape \(1, 5, 5\), expected \(1, 4, 4\)"),
        (Wrong(4, [0, 2] * 10), r"training labels lie in 0\.\.2, expected 0\.\.1"),
        (Wrong(4, [0, -1] * 10), r"training labels lie in -1\.\.0, expected 0\.\.1"),
        (Wrong(4, []), r"training labels lie in nothing, expected 0\.\.1"),
        (Wrong(4, [0] * 10 + [1]), "class b has 1 training images, at least 2 are needed"),
        (Wrong(4, [0, 1] * 10, count=19), "wrong has 19 images and 20 labels in a split"),
        (Wrong(4, [0, 1] * 10, count=21), "wrong has 21 images and 20 labels in a split"),
    ],
)
def test_data_that_break_their_promise_are_refused(source: Source, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataModule(source).setup()


class Kept(Given):
    """The same, decoded from a file and kept in the cache."""

    def __init__(self, split: Split, path: Path) -> None:
        super().__init__(split)
        self.path = path

    def files(self) -> dict[str, Path]:
        return {self.path.name: self.path}


def sources(images: Tensor, labels: Tensor, folder: Path) -> list[tuple[Source, str | None]]:
    """The same images in memory and in the cache."""
    (folder / "raw").write_text("anything")
    split = Split(labels, [images])
    return [(Given(split), None), (Kept(split, folder / "raw"), str(folder / "cache"))]


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.uint64])
def test_integers_in_0_to_255_are_pixels_whatever_their_type(kind: torch.dtype, tmp_path: Path) -> None:
    _, split = Digits().load()
    pixels = next(iter(split.chunks)) // (2 if kind == torch.int8 else 1)
    for source, cache in sources(pixels.to(kind), split.labels.int(), tmp_path):
        data = ImageDataModule(source, validate_on="test", cache=cache)
        data.setup()
        assert torch.equal(data.train.images, pixels)
        assert torch.equal(data.train.labels, split.labels)
        assert data.train.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda pixels: pixels / 255, r"torch\.float32 and lie in 0\.\.1"),
        (lambda pixels: pixels.double(), r"torch\.float64 and lie in 0\.\.255"),
        (lambda pixels: pixels > 99, r"torch\.bool and lie in 0\.\.1"),
        (lambda pixels: pixels.long() + 1, r"torch\.int64 and lie in 1\.\.256"),
        (lambda pixels: pixels.to(torch.int16) - 128, r"torch\.int16 and lie in -128\.\.127"),
    ],
)
def test_other_pixels_are_refused_in_memory_and_on_the_disk(
    change: Callable[[Tensor], Tensor], found: str, tmp_path: Path
) -> None:
    _, split = Digits().load()
    for source, cache in sources(change(next(iter(split.chunks))), split.labels, tmp_path):
        with pytest.raises(DataError, match=rf"given: pixels have type {found}, expected uint8, or other integers"):
            ImageDataModule(source, validate_on="test", cache=cache).setup()
    assert os.listdir(tmp_path) == ["raw"]


@pytest.mark.parametrize("labels", [torch.arange(360) % 10 / 1, (torch.arange(360) % 10)[:, None]])
def test_labels_that_are_no_integers_or_no_list_are_refused(labels: Tensor) -> None:
    pixels = torch.zeros(360, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"given: labels have type .* expected integers of shape \(N,\)"):
        ImageDataModule(Given(Split(labels, [pixels]))).setup()


def test_grey_images_in_three_channels_are_named(caplog: pytest.LogCaptureFixture) -> None:
    _, split = Digits().load()
    grey = next(iter(split.chunks))
    almost = grey.repeat(1, 3, 1, 1)
    almost[0, 0, 0, 0] += 1
    for images, lines in ((grey, 0), (grey.repeat(1, 3, 1, 1), 1), (almost, 0)):
        caplog.clear()
        source = Given(Split(split.labels, [images]))
        source.image_shape = (images.shape[1], 8, 8)
        with caplog.at_level("INFO"):
            ImageDataModule(source, validate_on="test").setup()
        assert sum("are grey in three equal channels" in line for line in caplog.messages) == lines


def test_fewer_digits_are_those_of_all_and_another_data_set() -> None:
    """In both splits, so that numbers of classes are compared on the same images."""
    few = Digits(num_classes=3)
    for ours, whole in zip(few.load(), Digits().load(), strict=True):
        kept = whole.labels < 3
        assert torch.equal(ours.labels, whole.labels[kept])
        assert torch.equal(torch.cat(list(ours.chunks)), torch.cat(list(whole.chunks))[kept])
    assert few.classes == ("0", "1", "2")
    assert few.name == "digits 0 to 2"
    with pytest.raises(ValueError, match=r"^num_classes must lie in 2\.\.10, got 1"):
        Digits(num_classes=1)
