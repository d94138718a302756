"""What a run finds out about its distilled set, and what it leaves behind."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.analysis.features import Features, layer_similarity
from mim4dd_pl.analysis.findings import plain
from mim4dd_pl.analysis.similarity import gram, minibatch_cka
from mim4dd_pl.app.cli import main
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.convnet import ConvNet
from tests.conftest import CONFIGS, randn

CALLBACKS = """--trainer.callbacks=[{class_path: Evaluation, init_args: {num_students: 2, training: {epochs: 2}}},
    {class_path: Export}, {class_path: ClosingTable}]"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two images of each digit that stay the real images they start from, and the overlay on its callbacks."""
    folder = tmp_path_factory.mktemp("analysis")
    return [
        *("-c", str(CONFIGS / "distill/digits.yaml"), "-c", str(CONFIGS / "with/smoke.yaml"), CALLBACKS),
        *("-c", str(CONFIGS / "with/analysis.yaml"), "--trainer.callbacks.init_args.real_images=60"),
        *("--model.images_per_class=2", "--model.lr_images=0", "--data.max_train_images=300"),
        *("--model.experts.num_experts=1", "--trainer.enable_progress_bar=false"),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--model.experts.root={folder}/experts",
    ]


@pytest.fixture(scope="module")
def run(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert main(["fit", *recipe]) == 0
    return tmp_path_factory.getbasetemp() / "analysis0/digits/version_0"


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "analysis/analysis.json").read_text())
    return content


def test_the_overlay_adds_to_the_callbacks_of_a_recipe(run: Path) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    names = [callback["class_path"].rpartition(".")[2] for callback in kept]
    assert names == ["Evaluation", "Export", "ClosingTable", "Analysis"]


def test_every_figure_is_there_and_has_a_caption(run: Path, found: dict[str, Any]) -> None:
    figures = {path.name for path in (run / "analysis").iterdir()} - {"analysis.json"}
    assert figures == {"cka.png", "neighbours.png", "tsne.png"} == found["captions"].keys()


def test_cka_has_a_row_and_a_column_for_each_layer(found: dict[str, Any]) -> None:
    cka = found["cka"]
    assert cka["rows"] == cka["columns"] == ["layer1", "layer2"]
    for name in ("values", "control"):
        assert [len(row) for row in cka[name]] == [2, 2]
        assert all(-1 <= value <= 1 for row in cka[name] for value in row)


def test_images_that_were_not_learned_are_found_among_the_real_ones(found: dict[str, Any]) -> None:
    for space in ("pixels", "features"):
        neighbours = found["neighbours"][space]
        assert len(neighbours["ratio"]) == len(neighbours["nearest"]) == 20
        assert max(neighbours["ratio"]) < 1e-4
        assert neighbours["searched"] == 300
    assert found["neighbours"]["pixels"]["nearest"] == found["neighbours"]["features"]["nearest"]


def test_diversity_and_overlap_of_several_images_per_class(found: dict[str, Any]) -> None:
    assert found["diversity"].keys() == set("0123456789")
    assert all(0.2 < ratio < 2 for ratio in found["diversity"].values())
    assert found["overlap"].keys() == {"learned_neighbour", "real_class_mean"}


def test_tensorboard_has_the_figures_and_a_projector(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    assert {"analysis/cka", "analysis/neighbours", "analysis/tsne"} <= set(events.Tags()["images"])
    table = (run / "00004/analysis/metadata.tsv").read_text().splitlines()
    assert table[0] == "class\timage"
    assert [line.partition("\t")[2] for line in table[1:]] == ["real"] * 60 + ["learned"] * 20
    assert len((run / "00004/analysis/tensors.tsv").read_text().splitlines()) == 80


def test_a_test_finds_what_the_fit_found(run: Path, recipe: list[str], found: dict[str, Any], tmp_path: Path) -> None:
    assert main(["test", *recipe, f"--distilled={run}/distilled/last", f"--results={tmp_path}"]) == 0
    again = json.loads((tmp_path / "analysis/analysis.json").read_text())
    assert again | {"distilled": None} == found | {"distilled": None}


def test_without_experts_features_are_a_students(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = [f"--model.experts.root={tmp_path}/none", "--trainer.callbacks.init_args.tsne=false"]
    arguments = [*recipe, *elsewhere, f"--distilled={run}/distilled/last", f"--results={tmp_path}"]
    assert main(["test", *arguments]) == 0
    assert "No CKA: it compares students with an expert, and none is stored." in capsys.readouterr().out
    content = json.loads((tmp_path / "analysis/analysis.json").read_text())
    assert content["features_of"] == "the first student"
    assert "cka" not in content
    assert {path.name for path in (tmp_path / "analysis").iterdir()} == {"analysis.json", "neighbours.png"}


def test_a_test_without_a_folder_looks_at_nothing(run: Path, recipe: list[str], capsys: Any) -> None:
    assert main(["test", *recipe, f"--distilled={run}/distilled/last"]) == 0
    assert "Analysing" not in capsys.readouterr().out


def test_what_is_not_finite_is_null_in_a_file() -> None:
    assert plain(torch.tensor([[1.0, torch.nan], [torch.inf, 0.5]])) == [[1.0, None], [None, 0.5]]


def test_a_diverged_student_is_not_looked_through(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = CALLBACKS.replace("epochs: 2", "epochs: 2, lr: 1.0e+30").replace("}]", "}, {class_path: Analysis}]")
    arguments = [*recipe[:4], diverging, "--trainer.enable_progress_bar=false"]
    elsewhere = [f"--model.experts.root={tmp_path}/none", f"--distilled={run}/distilled/last", f"--results={tmp_path}"]
    assert main(["test", *arguments, *elsewhere]) == 0
    assert "No analysis: the student that it looks through diverged." in capsys.readouterr().out
    assert not (tmp_path / "analysis").exists()


def test_too_few_real_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^real_images must be at least 10, got 9"):
        Analysis(real_images=9)


def test_layers_are_compared_on_whole_minibatches_of_the_same_images(stream: Stream) -> None:
    """Of 600 images two minibatches of 256; each network is like itself, and another one less."""
    network = FlatNetwork(partial(ConvNet, depth=2, width=4), (1, 8, 8), 3)
    one, other = (Features(network, network.initial(stream.at(number)), {}) for number in range(2))
    images = InMemory(randn(stream, 700, 1, 8, 8, dtype=torch.float32), torch.zeros(700, dtype=torch.int64))
    rows = torch.randperm(700, generator=stream.generator())[:600]
    same, different = layer_similarity(one, [one, other], images, rows)
    torch.testing.assert_close(same.diag(), torch.ones(2, dtype=torch.float64))
    seen = [images.images[rows[:256]], images.images[rows[256:512]]]
    torch.testing.assert_close(different, minibatch_cka([(one.grams(x), other.grams(x)) for x in seen]))
    assert different.max() < 0.99
    torch.testing.assert_close(one.grams(seen[0])[1], gram(network.layers(one.theta, seen[0])[1]))


def test_large_maps_are_averaged_where_asked_for(network: FlatNetwork, stream: Stream) -> None:
    theta, images = network.initial(stream), randn(stream, 300, 1, 4, 4, dtype=torch.float32)
    (whole,) = Features(network, theta, {}).layers(images)
    (small,) = Features(network, theta, {}).layers(images, most=1)
    torch.testing.assert_close(small, whole.unflatten(1, (4, -1)).mean(2))
