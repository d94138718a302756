"""One call: a distilled set, somebody's images, an accuracy."""

import json
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from mim4dd_pl import DistilledDataset
from mim4dd_pl.app.cli import main
from mim4dd_pl.data.formation import mix
from mim4dd_pl.data.sources import Digits
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.evaluate import evaluate
from mim4dd_pl.stored.artefact import write_distilled
from mim4dd_pl.stored.distilled import Distilled
from tests.conftest import CONFIGS

SMALL = partial(ConvNet, depth=2, width=32)


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits())
    data.setup()
    return data


@pytest.fixture(scope="module")
def images(digits: ImageDataModule) -> tuple[Tensor, Tensor]:
    """The test images as they come, uint8."""
    return digits.test.images[digits.test.rows], digits.test.labels


@pytest.fixture(scope="module")
def folder(digits: ImageDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real images of each digit as if they were learned."""
    train = digits.train
    first = torch.cat([torch.nonzero(train.labels == label)[:3, 0] for label in range(10)])
    normalization, classes = train.normalization, digits.source.classes
    made = Distilled(*train.batch(first), None, torch.tensor(0.05), normalization, classes, {})
    folder = tmp_path_factory.mktemp("evaluate") / "set"
    write_distilled(folder, made)
    return folder


@pytest.fixture(scope="module")
def canvases(digits: ImageDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three canvases of four small real images of each digit as if they were learned."""
    train, normalization = digits.train, digits.train.normalization
    real = train.batch(torch.cat([torch.nonzero(train.labels == label)[:12, 0] for label in range(10)])).images
    labels = torch.arange(10).repeat_interleave(3)
    made = Distilled(mix(real, 2), labels, None, torch.tensor(0.05), normalization, digits.source.classes, {}, 2)
    folder = tmp_path_factory.mktemp("evaluate") / "canvases"
    write_distilled(folder, made)
    return folder


def test_a_plain_loop_on_canvases_reaches_the_same_accuracy(canvases: Path, images: tuple[Tensor, Tensor]) -> None:
    data, pixels, labels = DistilledDataset(canvases), *images
    ours = evaluate(data, images, SMALL, students=4, epochs=60)
    theirs = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = SMALL((1, 8, 8), 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=data.student_lr, momentum=0.9, weight_decay=5e-4)
        for _ in range(60):
            x, y = next(iter(DataLoader(data, batch_size=len(data))))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            theirs.append(float((model(data.normalize(pixels.float() / 255)).argmax(1) == labels).float().mean()))
    assert ours.images == len(data) == 120
    assert ours.mean > 0.6
    assert abs(ours.mean - fmean(theirs)) < 3 * (ours.std**2 / 4 + stdev(theirs) ** 2 / 4) ** 0.5 + 1 / 360


def test_students_beat_chance_and_equal_calls_give_equal_numbers(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    scores = [evaluate(DistilledDataset(folder), images, SMALL, students=2, epochs=30) for _ in range(2)]
    assert scores[0].mean > 0.5
    assert scores[0].lr == pytest.approx(0.05)  # the learned one
    assert scores[0].confusion.sum((1, 2)).tolist() == [360, 360]
    assert torch.equal(scores[0].confusion, scores[1].confusion)


def test_images_count_the_same_however_they_come(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    pixels, labels = images[0].float() / 255, images[1]
    pairs = [(image, int(label)) for image, label in zip(pixels, labels, strict=True)]
    data = torch.utils.data.TensorDataset(pixels, labels)
    score = partial(evaluate, DistilledDataset(folder), network=SMALL, students=1, epochs=2)
    first, *others = [score(test).confusion for test in (images, (pixels, labels), pairs, data)]
    assert all(torch.equal(first, other) for other in others)


def test_one_student_has_no_std(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    score = evaluate(DistilledDataset(folder), images, SMALL, students=1, epochs=1)
    assert score.std != score.std  # NaN


@pytest.mark.parametrize("kind", ["folder", "canvases"])
def test_it_is_what_the_program_says(
    kind: str, images: tuple[Tensor, Tensor], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    training = "{epochs: 5, lr: 0.02, momentum: 0.9, weight_decay: 5.0e-4}"
    evaluation = f"{{class_path: Evaluation, init_args: {{num_students: 2, training: {training}}}}}"
    callbacks = f"--trainer.callbacks=[{evaluation}, {{class_path: Export}}, {{class_path: ClosingTable}}]"
    recipe = ["-c", str(CONFIGS / "distill/digits.yaml"), callbacks, f"--model.experts.root={tmp_path}/none"]
    assert main(["test", *recipe, f"--distilled={folder}", f"--results={tmp_path}", "--seed_everything=3"]) == 0
    row = json.loads((tmp_path / "results.json").read_text())["test"][0]
    score = evaluate(DistilledDataset(folder), images, SMALL, students=2, epochs=5, lr=0.02, seed=3)
    assert score.as_dict() == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :, 1:], y), r"images of shape \(1, 7, 8\), the distilled ones have \(1, 8, 8\)"),
        (lambda x, y: (x, y[1:]), r"360 images, and labels of shape \(359,\): give one each"),
        (lambda x, y: (x.float(), y), r"pixels in 0\.\.255, expected \[0, 1\]"),
        (lambda x, y: (x, y + 1), r"labels \[1, .*10\], expected whole numbers in 0\.\.9"),
        (lambda x, y: [], "test holds no images"),
        (lambda x, y: [("picture", 0)], "test holds str in place of images as tensors"),
    ],
)
def test_images_of_another_kind_are_refused(
    change: Any, message: str, folder: Path, images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(DistilledDataset(folder), change(*images), SMALL)


def test_no_students_are_refused(folder: Path, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="students must be at least 1, got 0"):
        evaluate(DistilledDataset(folder), images, students=0)
