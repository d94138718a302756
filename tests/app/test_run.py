"""One real run on the digits, short but whole, and everything that it must leave behind."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mim4dd_pl import DistilledDataset
from mim4dd_pl.app.cli import main
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.data.sources import Digits
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.networks.convnet import ConvNet
from tests.conftest import CONFIGS


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("run")
    return [
        *("-c", str(CONFIGS / "distill/digits.yaml")),
        *("-c", str(CONFIGS / "with/mutual_information.yaml")),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--model.experts.root={folder}/experts",
        "--trainer.max_steps=80",
        "--trainer.val_check_interval=40",
    ]


@pytest.fixture(scope="module")
def run(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert main(["fit", *recipe]) == 0
    return tmp_path_factory.getbasetemp() / "run0/digits/version_0"


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, dict[str, float]]:
    rows = json.loads((run / "results.json").read_text())["test"]
    return {row["trained_on"].split(" (")[0]: row for row in rows}


def test_distilled_digits_beat_random_digits_by_more_than_their_stds(results: dict[str, dict[str, float]]) -> None:
    distilled, random = results["distilled"], results["random real images"]
    assert distilled["images"] == random["images"] == 10
    assert distilled["accuracy"] - random["accuracy"] > distilled["std"] + random["std"]
    assert distilled["accuracy"] > 0.88
    assert results["whole training set"]["accuracy"] > 0.97


def test_a_plain_training_loop_on_the_artefact_reaches_the_reported_accuracy(
    run: Path, results: dict[str, dict[str, float]]
) -> None:
    """Without our evaluation code: a module, torch's optimiser and scheduler-free SGD, as the card says."""
    data = DistilledDataset(run / "distilled/last")
    digits = ImageDataModule(Digits())
    digits.setup()
    x = data.normalize(digits.test.images.float() / 255)
    augment, accuracies = DSA(["crop", "scale", "rotate"]), []
    for seed in range(3):
        torch.manual_seed(seed)
        network = ConvNet((1, 8, 8), 10, depth=2, width=32)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for epoch in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(augment(data.images, Stream(seed).at(epoch))), data.labels).backward()
            optimizer.step()
        accuracies.append((network(x).argmax(1) == digits.test.labels).float().mean())
    reported = results["distilled"]
    assert float(torch.stack(accuracies).mean()) == pytest.approx(reported["accuracy"], abs=3 * reported["std"] + 0.01)


def test_validate_and_test_repeat_what_the_run_reported(
    run: Path,
    recipe: list[str],
    results: dict[str, dict[str, float]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(stage: str) -> float:
        found = re.search(rf"^{stage} accuracy ([0-9.]+) \+- [0-9.]+ % \(5 students\)$", capsys.readouterr().out, re.M)
        assert found is not None
        return float(found[1])

    assert main(["test", *recipe, "--ckpt_path=last"]) == 0
    assert printed("test") == pytest.approx(100 * results["distilled"]["accuracy"], abs=0.005)
    assert main(["validate", *recipe, f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    reported = DistilledDataset(run / "distilled/last").facts["validation accuracy"]
    assert printed("validation") == pytest.approx(100 * float(reported.split()[0]), abs=0.01)
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert len(list(run.glob("events.*"))) == 1
    assert not list(tmp_path.iterdir())


def test_best_is_the_first_of_the_best_validations(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    accuracies = [event.value for event in events.Scalars("validation/accuracy")]
    best, last = (DistilledDataset(run / "distilled" / which).facts for which in ("best", "last"))
    assert int(best["outer steps"]) == 40 * (1 + accuracies.index(max(accuracies)))
    assert int(last["outer steps"]) == 80


def test_the_card_says_how_to_train_on_the_set(run: Path) -> None:
    card = (run / "distilled/best/README.md").read_text()
    assert "Training(epochs=300, batch_size=256, lr=0.01, momentum=0.9, weight_decay=0.0005" in card
    assert "DSA(crop, scale, rotate)" in card
    assert "TrajectoryMatching(unroll_steps=20" in card


def test_tensorboard_has_the_curves_and_the_pictures(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    names = {"train/matching_loss", "train/student_lr", "train/information_loss", "train/bound_nats_layer2"}
    names |= {"train/image_gradient_host", "train/image_gradient_information", "validation/accuracy"}
    assert names <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("synthetic/images")] == [39, 79]
    assert [event.step for event in events.Scalars("validation/accuracy")] == [39, 79]


def test_the_run_keeps_its_recipe(run: Path) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["trainer"]["max_steps"] == 80
    assert kept["model"]["init_args"]["information"]["init_args"]["critic"]["class_path"].endswith("InfoNCECritic")


def test_the_matching_loss_falls(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/matching_loss")]
    assert losses[-1] < losses[0] < 1.5


def test_a_healthy_run_is_told_nothing(run: Path) -> None:
    assert json.loads((run / "diagnostics.json").read_text()) == []
