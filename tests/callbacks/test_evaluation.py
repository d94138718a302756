"""Students of a distilled set beside their controls: by the protocol that the recipe asks for."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim4dd_pl import DistilledDataset
from mim4dd_pl.app.cli import main
from mim4dd_pl.data.sets import Batch, ImageSet
from mim4dd_pl.population.evaluator import Evaluator
from tests.conftest import CONFIGS

STUDENTS = "{epochs: 20, lr: 0.01, momentum: 0.9}"
NO_TABLE = f"--trainer.callbacks=[{{class_path: Evaluation, init_args: {{training: {STUDENTS}}}}}]"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digits in a small form, with soft labels."""
    folder = tmp_path_factory.mktemp("evaluation")
    return [
        *("-c", str(CONFIGS / "distill/digits.yaml"), "-c", str(CONFIGS / "with/soft_labels.yaml")),
        *("-c", str(CONFIGS / "with/smoke.yaml"), "--trainer.enable_progress_bar=false"),
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--model.experts.root={folder}/experts",
    ]


def callbacks(lrs: str = "null", whole: str = "null") -> str:
    """The callbacks of a recipe with these learning rates and epochs on the whole set."""
    return f"""--trainer.callbacks=[{{class_path: Evaluation, init_args: {{num_students: 2, training: {STUDENTS},
        lrs: {lrs}}}}}, {{class_path: Export, init_args: {{tensors: true}}}},
        {{class_path: ClosingTable, init_args: {{whole_set: {whole}}}}}, {{class_path: LastCheckpoint}}]"""


def cheaper(during: str) -> str:
    """The callbacks of a recipe whose validations differ so from its table."""
    return callbacks().replace("lrs: null", during)


@pytest.fixture(scope="module")
def run(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything in its table."""
    assert main(["fit", *recipe, callbacks("[0.003, 0.03]", "{epochs: 1, lr: 0.05}")]) == 0
    return tmp_path_factory.getbasetemp() / "evaluation0/digits/version_0"


def test_the_table_has_every_control(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())["test"]
    names = [(row["trained_on"].replace("best, step 2", "last"), row["network"].partition("(")[0]) for row in rows]
    assert list(dict.fromkeys(names)) == [
        ("distilled (last)", "ConvNet"),
        ("distilled (last), hard labels", "ConvNet"),
        ("random real images", "ConvNet"),
        ("random real, an expert's labels", "ConvNet"),
        ("whole training set", "ConvNet"),
    ]
    assert all(row["students"] == 2 and len(row["per_class"]) == len(row["confusion"]) == 10 for row in rows)
    assert all(sum(map(sum, row["confusion"])) == 2 * 360 for row in rows)


def test_searched_learning_rates_are_those_of_the_recipe_and_the_whole_set_keeps_its_own(run: Path) -> None:
    rows = {row["trained_on"]: row["lr"] for row in json.loads((run / "results.json").read_text())["test"]}
    assert rows.pop("whole training set") == 0.05
    assert set(rows.values()) <= {0.003, 0.03}


def test_the_learning_rate_with_the_best_validation_accuracy_is_taken(
    recipe: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the test images say: the search is told that 0.003 does best, then that 0.03 does."""
    for better in (0.003, 0.03):
        said = cycle([0.9, 0.1] if better == 0.003 else [0.1, 0.9])
        monkeypatch.setattr(Evaluator, "validate", lambda *_, said=said: SimpleNamespace(mean=next(said)))
        arguments = [*recipe, callbacks("[0.003, 0.03]"), f"--distilled={run}/distilled/last", f"--results={tmp_path}"]
        assert main(["test", *arguments]) == 0
        rows = json.loads((tmp_path / "results.json").read_text())["test"]
        assert {row["lr"] for row in rows} == {better}


def test_the_search_looks_at_validation_images_only(recipe: list[str], run: Path) -> None:
    seen = []
    real = ImageSet.batches

    def spy(self: ImageSet, size: int) -> Iterator[Batch]:
        seen.append(len(self))
        return real(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSet, "batches", spy)
        arguments = [*recipe, callbacks("[0.003, 0.03]"), f"--distilled={run}/distilled/last"]
        assert main(["validate", *arguments]) == 0
    assert set(seen) == {144}  # a tenth of the training images; the test images are 360


def test_scores_of_dd_ranking_are_made_of_the_right_rows(run: Path) -> None:
    """HLR of hard labels, IOR over random real images with an expert's labels, since the set's own are soft."""
    content = json.loads((run / "results.json").read_text())
    means = {row["trained_on"]: row["accuracy"] for row in reversed(content["test"])}
    hlr = means["whole training set"] - means["distilled (last), hard labels"]
    assert content["ranking"]["HLR"] == pytest.approx(hlr)
    assert content["ranking"]["IOR"] == pytest.approx(
        means["distilled (last)"] - means["random real, an expert's labels"]
    )
    assert 0 < content["ranking"]["LRS"] < 1


def test_the_csv_has_the_rows_of_the_json(run: Path) -> None:
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = json.loads((run / "results.json").read_text())["test"]
    assert [row["trained_on"] for row in rows] == [row["trained_on"] for row in written]
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in written]


def test_tensorboard_has_settings_beside_results(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    assert "test/ConvNet/distilled (last)" in events.Tags()["scalars"]
    kept = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.init_args.images_per_class" in kept


def test_soft_labels_travel_with_the_artefact(run: Path) -> None:
    data = DistilledDataset(run / "distilled/last")
    assert data.soft_labels is not None
    torch.testing.assert_close(data.soft_labels.sum(1), torch.ones(10))
    assert torch.equal(data.labels, torch.arange(10))
    assert torch.equal(torch.as_tensor(data[3][1]), data.soft_labels[3])


def test_an_artefact_and_its_tensors_are_evaluated_alike(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From elsewhere: without checkpoint or experts, on another network; nothing is written but the results."""
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in ("images.pt", "labels.pt", "lr.pt"):
        shutil.copy(run / "distilled/last" / name, exported)
    elsewhere = [f"--model.experts.root={tmp_path}/none", callbacks(), "--model.network={class_path: MLP}"]
    printed = []
    for folder in (run / "distilled/last", exported):
        before = set(run.parent.parent.rglob("*"))
        arguments = [*recipe, *elsewhere, f"--distilled={folder}", f"--results={tmp_path}/{folder.name}"]
        assert main(["test", *arguments]) == 0
        printed.append(capsys.readouterr().out)
        assert set(run.parent.parent.rglob("*")) == before
        content = json.loads((tmp_path / folder.name / "results.json").read_text())
        assert [row["trained_on"] for row in content["test"]] == [
            "distilled",
            "distilled, hard labels",
            "random real images",
        ]
        assert content["distilled set"] == str(folder)
    first = [re.findall(r"test accuracy (.*) %", text) for text in printed]
    assert first[0] == first[1] != []


def test_the_learned_learning_rate_is_taken_where_there_is_one(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*recipe, callbacks("learned"), f"--distilled={run}/distilled/last", f"--results={tmp_path}"]
    assert main(["test", *arguments]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["test"]
    lrs = {row["trained_on"]: row["lr"] for row in rows}
    assert lrs["distilled"] == pytest.approx(DistilledDataset(run / "distilled/last").student_lr)
    assert lrs["random real images"] == 0.01
    assert "lr" in capsys.readouterr().out


def test_experts_that_do_not_fit_cost_their_row_and_nothing_else(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The set of a ConvNet tested on another network, whose experts are not those in the recipe's folder."""
    arguments = [*recipe, callbacks(), f"--distilled={run}/distilled/last", "--model.network={class_path: MLP}"]
    assert main(["test", *arguments, f"--results={tmp_path}"]) == 0
    assert "No row with an expert's labels: The trajectories of" in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    assert "random real, an expert's labels" not in {row["trained_on"] for row in content["test"]}
    assert content["ranking"] == {}  # soft labels, and neither an expert's nor the whole set beside them


def test_a_checkpoints_table_knows_its_run(run: Path, recipe: list[str], tmp_path: Path) -> None:
    assert main(["test", *recipe, callbacks(), "--ckpt_path=last", f"--results={tmp_path}"]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["outer steps"], content["seed"]) == ("4", "0")
    assert content["chosen on"] == "held-out training images"
    assert {row["trained_on"] for row in content["test"]} >= {"distilled", "random real, an expert's labels"}


def test_other_networks_are_tested_on_the_set_and_on_random_images(
    run: Path, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    across = "--across=[MLP, {class_path: ConvNet, init_args: {depth: 1, norm: batch}}]"
    assert main(["test", *recipe, callbacks(), "--ckpt_path=last", across, f"--results={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["test"]
    networks = [row["network"] for row in rows if row["trained_on"] == "distilled"]
    assert [name.partition("(")[0] for name in networks] == ["ConvNet", "MLP", "ConvNet"]
    assert "norm=batch" in networks[2]
    assert networks == [row["network"] for row in rows if row["trained_on"] == "random real images"]
    assert "MLP" in capsys.readouterr().out


def test_validate_takes_a_distilled_set_too(run: Path, recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *recipe, callbacks(), f"--distilled={run}/distilled/last"]) == 0
    assert re.search(r"^validation accuracy [0-9.]+ \+- [0-9.]+ % \(2 students\)$", capsys.readouterr().out, re.M)


def test_validations_of_a_fit_may_be_cheaper_than_its_table(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are what a run of the cheaper protocol has, the best set by them too; its table is that of the full one."""
    full, cheap = (f"num_students: {count}, training: {{epochs: {epochs}}}" for count, epochs in ((3, 5), (2, 2)))
    both = f"{full}, during_students: 2, during_epochs: 2"
    runs = []
    for number, settings in enumerate((full, cheap, both)):
        callbacks = f"""--trainer.callbacks=[{{class_path: Evaluation, init_args: {{{settings}}}}},
            {{class_path: Export}}, {{class_path: ClosingTable}}, {{class_path: LastCheckpoint}}]"""
        run = [*recipe, f"--trainer.logger.init_args.save_dir={tmp_path}/{number}", callbacks]
        assert main(["fit", *run]) == 0
        runs.append(tmp_path / f"{number}/digits/version_0")
    events = [EventAccumulator(str(folder)).Reload() for folder in runs]
    curves = [[event.value for event in each.Scalars("validation/accuracy")] for each in events]
    assert curves[2] == curves[1] != curves[0]
    kept = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Export"] for folder in runs]
    assert kept[2] == kept[1]
    rows = [json.loads((folder / "results.json").read_text())["test"][-3:] for folder in runs]
    assert rows[2] == rows[0]
    facts = [DistilledDataset(folder / "distilled/last").facts for folder in runs]
    assert facts[2]["validation accuracy"] == f"{facts[1]['validation accuracy']} (2 students of 2 epochs)"
    assert facts[2]["students"] == facts[0]["students"]
    capsys.readouterr()
    assert main(["validate", *run, "--ckpt_path=last"]) == 0
    assert "% (3 students)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--distilled=x", "--ckpt_path=last"], 2, "--ckpt_path and --distilled both say what to evaluate"),
        (["--distilled=nowhere"], 4, "No distilled set in nowhere"),
        ([callbacks("[0.1, 0]"), "--distilled=x"], 2, "Evaluation.lrs must be `learned` or positive learning rates"),
        ([callbacks("[]"), "--distilled=x"], 2, "Evaluation.lrs must be `learned` or positive learning rates"),
        ([cheaper("during_students: 1"), "--distilled=x"], 2, "Evaluation.during_students must be at least 2"),
        ([cheaper("during_epochs: 0"), "--distilled=x"], 2, "Evaluation.during_epochs must be at least 1, got 0"),
        (["--across=[MLP]", "--distilled=x", NO_TABLE], 2, "across and results speak of the closing table"),
        (["--across=[LeNet]", "--ckpt_path=last"], 2, "across: LeNet needs images of at least"),
        (["--across=[NoNet]", "--ckpt_path=last"], 2, "NoNet"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    arguments: list[str], code: int, message: str, run: Path, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["test", *recipe, *arguments]) == code
    assert re.fullmatch(f"mim4dd: error: .*{re.escape(message)}.*\n", capsys.readouterr().err)
