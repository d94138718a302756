"""What `mim4dd check` promises, beside what the run then takes."""

import re
from pathlib import Path

import pytest

from mim4dd_pl.cli import main
from tests.conftest import CONFIGS

DIGITS = CONFIGS / "distill/digits.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mim4dd_pl.estimate._MEASURED_SECONDS", 0.05)
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
