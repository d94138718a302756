"""Steps that are not finite, and steps that find no memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mim4dd_pl.app.cli import main
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.gradients import Gradients
from tests.app.test_resume import RECIPE, in_folder, outcome

PLAIN = DistillationModule.mean_gradients


def spoil(monkeypatch: pytest.MonkeyPatch, steps: range, field: str = "host_loss") -> None:
    whole = DistillationModule.mean_gradients

    def mean_gradients(self: DistillationModule, step: int) -> Gradients:
        mean = whole(self, step)
        return mean._replace(**{field: getattr(mean, field) * float("nan")}) if step in steps else mean

    monkeypatch.setattr(DistillationModule, "mean_gradients", mean_gradients)


def run_out(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole = DistillationModule.mean_gradients

    def mean_gradients(self: DistillationModule, step: int) -> Gradients:
        if step == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, step)

    monkeypatch.setattr(DistillationModule, "mean_gradients", mean_gradients)


def kept(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
    return checkpoint


@pytest.mark.parametrize("field", ["host_images", "information_parameters"])
def test_a_skipped_step_counts_and_changes_nothing(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, range(4, 8), field)
    for name, steps in (("four", 4), ("eight", 8)):
        short = [*RECIPE, f"--model.experts.root={tmp_path}/experts", f"--trainer.max_steps={steps}"]
        assert main([*short, f"--trainer.logger.init_args.save_dir={tmp_path / name}"]) == 0
    before, after = kept(tmp_path / "four"), kept(tmp_path / "eight")
    assert (after["global_step"], after["skips"]) == (8, {"in_row": 4, "total": 4})
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0)


def test_a_run_that_goes_on_after_a_skipped_step_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, range(3, 4))
    assert main([*RECIPE, *in_folder(tmp_path / "whole")]) == 0
    arguments = [*RECIPE, *in_folder(tmp_path / "cut")]
    with monkeypatch.context() as stopped:
        run_out(stopped, 5)
        assert main(arguments) == 2
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert kept(tmp_path / "cut")["skips"] == {"in_row": 0, "total": 1}
    runs = [outcome(tmp_path / which / "digits/version_0") for which in ("cut", "whole")]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_ten_in_a_row_end_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, range(2, 20))
    assert main([*RECIPE, *in_folder(tmp_path), "--trainer.max_steps=20"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "at step 11, " in printed.err
    assert printed.out.count("is skipped") == 1


@pytest.mark.parametrize("step", [4, 5])  # the first after a validation, and another
def test_no_memory_ends_with_one_line_and_the_resumed_run_equals_the_uninterrupted_one(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RECIPE, *in_folder(tmp_path / "whole")]) == 0
    arguments = [*RECIPE, *in_folder(tmp_path / "cut")]
    run_out(monkeypatch, step)
    assert main(arguments) == 2
    assert "synthetic_batch_size" in capsys.readouterr().err
    assert kept(tmp_path / "cut")["global_step"] == step
    monkeypatch.setattr(DistillationModule, "mean_gradients", PLAIN)
    assert main([*arguments, "--ckpt_path=last"]) == 0
    runs = [outcome(tmp_path / which / "digits/version_0") for which in ("cut", "whole")]
    torch.testing.assert_close(*runs, rtol=0, atol=0)
