"""What `mim4dd check` promises, beside what the run then takes."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.app.cli import main
from mim4dd_pl.app.estimate import _looks
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.networks.resnet import ResNet18
from mim4dd_pl.objectives.synthetic import SyntheticImages
from tests.conftest import CONFIGS

DIGITS = CONFIGS / "distill/digits.yaml"
MEASURE = [f"mim4dd_pl.app.{module}.seconds" for module in ("timing", "outer_step", "estimate")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mim4dd_pl.app.timing.MEASURED_SECONDS", 0.05)
    return tmp_path


def numbers(printed: str) -> dict[str, float]:
    return {line[:14].strip(): float(line[14:].split()[0]) for line in printed.splitlines()}


def test_check_names_every_stage_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    term = CONFIGS / "with/mutual_information.yaml"
    assert main(["check", "-c", str(DIGITS), "-c", str(term)]) == 0
    shown = numbers(capsys.readouterr().out)
    stages = ["experts", "distillation", "evaluation", "closing table"]
    assert list(shown) == [*stages, "in all", "memory", "disk"]
    assert shown["in all"] == pytest.approx(sum(shown[stage] for stage in stages), abs=0.25)
    assert 100 < shown["memory"] < 4000
    assert not list(here.iterdir())


def test_the_baseline_of_the_diagnostics_and_the_analysis_are_counted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were every part a second: three validations of the recipe, and a fourth for the baseline."""
    for place in MEASURE:
        monkeypatch.setattr(place, lambda *_: 1.0)
    callbacks = yaml.safe_load(DIGITS.read_text())["trainer"]["callbacks"]
    shown = []
    for baseline in (False, True):
        next(each for each in callbacks if each["class_path"] == "Diagnostics")["init_args"] = {"baseline": baseline}
        given = [f"--trainer.callbacks={yaml.safe_dump(callbacks)}", "-c", str(CONFIGS / "with/analysis.yaml")]
        assert main(["check", "-c", str(DIGITS), *given]) == 0
        shown.append(numbers(capsys.readouterr().out))
    assert shown[1]["evaluation"] == pytest.approx(4 / 3 * shown[0]["evaluation"], rel=0.01)
    assert shown[0]["analysis"] > 0


def test_cheaper_validations_cost_the_run_less_and_the_table_as_much(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were every part a second: 2 students of 150 epochs in place of 5 of 300 are a fifth."""
    for place in MEASURE:
        monkeypatch.setattr(place, lambda *_: 1.0)
    callbacks = yaml.safe_load(DIGITS.read_text())["trainer"]["callbacks"]
    shown = []
    for cheaper in ({}, {"during_students": 2, "during_epochs": 150}):
        next(each for each in callbacks if each["class_path"] == "Evaluation")["init_args"] |= cheaper
        assert main(["check", "-c", str(DIGITS), f"--trainer.callbacks={yaml.safe_dump(callbacks)}"]) == 0
        shown.append(numbers(capsys.readouterr().out))
    assert shown[1]["evaluation"] == pytest.approx(shown[0]["evaluation"] / 5, rel=0.01)
    assert shown[1]["closing table"] == shown[0]["closing table"]


def test_the_disk_is_what_the_experts_take(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["-c", str(CONFIGS / "experts/digits.yaml"), "--trainer.enable_progress_bar=false"]
    width = "--model.init_args.network.init_args.width=128"
    assert main(["check", *recipe, width]) == 0
    assert list(shown := numbers(capsys.readouterr().out)) == ["experts", "in all", "memory", "disk"]
    assert main(["fit", *recipe, width]) == 0
    written = sum(path.stat().st_size for path in here.rglob("*.safetensors")) / 2**20
    assert shown["disk"] == pytest.approx(written, abs=1)
    capsys.readouterr()
    assert main(["check", *recipe, width]) == 0
    assert numbers(capsys.readouterr().out)["disk"] == 0  # they are there


@pytest.mark.parametrize("command", ["check", "fit"])
@pytest.mark.parametrize("key", ["model.experts.root", "trainer.logger.init_args.save_dir"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    command: str, key: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in MEASURE:
        monkeypatch.setattr(place, None)
    (here / "file").touch()
    assert main([command, "-c", str(DIGITS), f"--{key}=file/x"]) == 4
    assert "Cannot write to file/x: " in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_disk_without_room_is_refused_with_what_is_needed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert main(["check", "-c", str(CONFIGS / "experts/digits.yaml")]) == 4
    said = capsys.readouterr().err
    assert re.search(r"The disk of checkpoints/experts/digits has 1 MiB free, 2 MiB are needed: free space or", said)


def test_memory_that_is_not_there_is_said_with_the_keys_to_lower(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mim4dd_pl.app.estimate.free_memory", lambda _: 0.01)
    assert main(["check", "-c", str(CONFIGS / "experts/digits.yaml")]) == 0
    assert "more memory than there is: lower model.objective.synthetic_batch_size" in capsys.readouterr().out


def test_compiled_steps_are_measured(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    network = [f"--model.init_args.network.init_args.{size}" for size in ("depth=1", "width=4")]
    tiny = [*network, "--model.init_args.objective.init_args.unroll_steps=4", "--model.init_args.compile=true"]
    assert main(["check", "-c", str(DIGITS), *tiny, "--whole_set=false", "--compiled=true"]) == 0
    shown = capsys.readouterr().out
    assert "The run compiles its steps" not in shown  # these are the compiled ones
    assert numbers(shown)["memory"] > 100
    assert not [record for record in caplog.records if "does not compile" in record.getMessage()]


def test_t_sne_is_counted_for_each_feature_map(data: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of ResNet18, which has 41 modules with parameters."""
    monkeypatch.setattr("mim4dd_pl.app.estimate.seconds", lambda run: 1.0 if run.__code__.co_names[0] == "tsne" else 0)
    network = FlatNetwork(partial(ResNet18, width=2), (1, 8, 8), 10)
    module = SimpleNamespace(network=network, synthetic=SyntheticImages((1, 8, 8), 10, 1))
    assert _looks(module, data, Analysis(real_images=100)) == 4  # type: ignore[arg-type]
    assert _looks(module, data, Analysis(real_images=100, tsne=False)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--trainer.max_steps=150"], 2, "so that the last step is evaluated; got 150"),
        (["--data.max_train_images=5"], 3, "data.max_train_images must lie in 10..1293"),
        (["--ckpt_path=last"], 2, "unrecognized arguments: --ckpt_path=last"),
    ],
)
def test_check_refuses_what_fit_refuses(
    arguments: list[str], code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", str(DIGITS), *arguments]) == code
    assert re.fullmatch(f"mim4dd: error: .*{re.escape(message)}.*\n", capsys.readouterr().err)
