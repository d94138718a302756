"""The published table: a tiny row end to end, what is kept of it, and how it is rendered."""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.rendering import BEGIN, END, markdown, rendered
from benchmarks.rows import FOLDER, PUBLISHED, ROOT, said_of
from benchmarks.table import DOCS, TABLES, main
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.yamls import read_mapping
from mim4dd_pl.sweep.cells import Cell
from mim4dd_pl.sweep.plan import Variant, read_sweep
from tests.conftest import CONFIGS, tiny_overlay

TABLE = f"recipe: {CONFIGS}/distill/digits.yaml\nwith: tiny.yaml\nseeds: [4]\nvariants: {{tiny: {{}}}}\n"
COMMAND = ["table.yaml", "--out", "out", "--results", "rows"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table of one row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "table.yaml").write_text(TABLE)
    tiny_overlay(tmp_path / "tiny.yaml", steps=12, every_n_steps=1)
    return tmp_path


def up_once_there_is(path: Path) -> None:
    """Let the time be up as soon as the run has a checkpoint."""

    def wait() -> None:
        while not path.is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=wait, daemon=True).start()


def test_a_row_that_is_cut_off_goes_on_and_is_measured_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "out/tiny/seed_4/version_0"
    up_once_there_is(run / "checkpoints/last.ckpt")
    assert main([*COMMAND, "--minutes", "5"]) == 0
    assert "stopped with 1 runs to go; the same command goes on" in capsys.readouterr().out
    assert not (here / "rows").exists()
    assert main(COMMAND) == 0
    assert [path.name for path in run.parent.glob("version_*")] == ["version_0"]  # it went on, and did not start anew
    results, row = (json.loads(path.read_text()) for path in (run / "results.json", here / "rows/tiny.json"))
    assert (row["row"], row["overrides"]) == ("tiny", {})
    assert row["recipe"] == [os.path.relpath(path, ROOT) for path in (CONFIGS / "distill/digits.yaml", "tiny.yaml")]
    (measured,) = row["runs"]
    assert (measured["seed"], measured["students"], row["std_over_seeds"]) == (4, 2, None)
    assert measured["accuracy"] == row["accuracy"] == results["test"][0]["accuracy"]
    assert measured["minutes"] == results["minutes"]
    assert row["settings"]["model.experts.num_experts"] == 1
    assert {"peak_memory_gib", "machine", "versions", "commit", "date"} <= measured.keys()
    percent = f"{100 * measured['accuracy']:.1f} +- {100 * measured['std_over_students']:.1f} (1)"
    assert f"| tiny |  |  | none | {percent} |" in markdown([Path("table.yaml")], Path("rows"))
    capsys.readouterr()
    assert main(COMMAND) == 0
    assert "1 runs, 1 of them measured" in capsys.readouterr().out


def test_a_run_that_fails_is_told_and_leaves_no_row(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Cell.begin
    program = "import sys; print('the reason'); sys.exit(1)"
    monkeypatch.setattr(Cell, "begin", lambda cell: [begin(cell)[0], "-c", program])
    assert main(COMMAND) == 1
    assert "tiny, seed 4: failed: the reason (see out/tiny/seed_4/log.txt)" in capsys.readouterr().out
    assert not (here / "rows").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "small"], "--rows must be out of tiny; got small."),
        (["-c", "more.yaml"], "tiny.json was measured with recipe "),
        (["--minute", "3"], "unrecognized arguments: --minute 3"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "more.yaml").write_text("tf32: true")
    write_measured(here / "rows", read_sweep(Path("table.yaml")).variants[0], [0.5])
    assert main([*COMMAND, *arguments]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


# --- rendering


def write_measured(
    results: Path, variant: Variant, accuracies: list[float], settings: Mapping[str, Any] | None = None
) -> None:
    """The file of a row, with seeds 0, 1, .. ."""
    runs = [
        {
            "seed": seed,
            "accuracy": accuracy,
            "std_over_students": 0.01,
            "accuracy_of_best_step": accuracy,
            "minutes": {"experts": 3.0 * (seed == 0), "distillation": 2.0, "closing table": 0.5},
            "peak_memory_gib": 4.0 + seed,
            "machine": "an abacus",
            "commit": "0a1b2c3",
            "versions": "torch 2",
        }
        for seed, accuracy in enumerate(accuracies)
    ]
    results.mkdir(exist_ok=True)
    row = {**said_of(variant), "settings": settings or {}, "runs": runs}
    (results / f"{variant.name}.json").write_text(json.dumps(row))


def test_docs_show_the_committed_rows() -> None:
    text = DOCS.read_text()
    assert rendered(text, TABLES, FOLDER / "rows") == text


def test_measured_stands_beside_published_with_what_differs(tmp_path: Path) -> None:
    host, term, *_ = read_sweep(TABLES[0]).variants
    published = read_mapping(PUBLISHED)["methods"]
    write_measured(tmp_path, host, [0.40, 0.42], {**published["MTT"]["settings"], "trainer.max_steps": 400})
    write_measured(tmp_path, term, [0.41, 0.44], published["MTT + MIM4DD"]["settings"])
    lines = markdown(TABLES[:1], tmp_path).splitlines()
    head, made_by = "| CIFAR-10 | 1 | MTT | 46.3 +- 0.8", "an abacus; commit 0a1b2c3; torch 2 |"
    assert lines[2] == f"{head} | 41.0 +- 1.4 (2) |  | 2.5 + 3.0 | 5.0 | max_steps 400 (5000) | {made_by}"
    assert "| 47.6 +- 0.2 | 42.5 +- 2.1 (2) | +1.50 [-4.85, +7.85] (2) | 2.5 + 3.0 | 5.0 |  |" in lines[3]
    assert lines[4] == "| CIFAR-10 | 10 | MTT | 65.3 +- 0.7 | not measured |  |  |  |  |  |"


def test_overlays_that_a_row_was_measured_with_are_named(here: Path) -> None:
    (here / "more.yaml").write_text("tf32: true")
    write_measured(here / "rows", read_sweep(Path("table.yaml"), [Path("more.yaml")]).variants[0], [0.5])
    assert f"| {os.path.relpath('more.yaml', ROOT)} |" in markdown([Path("table.yaml")], here / "rows")


def test_only_what_stands_between_the_lines_is_made_anew(here: Path) -> None:
    table = markdown([Path("table.yaml")], here)
    assert rendered(f"a\n{BEGIN}old\n{END}b\n", [Path("table.yaml")], here) == f"a\n{BEGIN}{table}{END}b\n"
    with pytest.raises(UserError, match="to put the table between"):
        rendered("no lines", [Path("table.yaml")], here)


# --- tables


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_rows_of_a_table_are_pairs_that_differ_in_the_term_alone(table: Path) -> None:
    variants = read_sweep(table).variants
    published = read_mapping(PUBLISHED)["rows"]
    for host, term in zip(variants[::2], variants[1::2], strict=True):
        assert (host.against, term.against) == (None, host.name)
        assert host.settings == term.settings
        assert [path.stem for path in term.recipe if path not in host.recipe] == ["mutual_information"]
        assert [published[each.name]["method"] for each in (host, term)] == ["MTT", "MTT + MIM4DD"]
        data = published[host.name]["data"].lower().replace("-", "")
        assert host.name.startswith(f"{data}_ipc{published[host.name]['ipc']}_")


def test_experts_of_their_own_are_trained_as_long_as_they_are_read() -> None:
    for variant in read_sweep(TABLES[0]).variants:
        objective = yaml.safe_load(variant.recipe[0].read_text())["model"]["init_args"]["objective"]["init_args"]
        read = objective["max_start_epoch"] - 1 + objective["expert_epochs"]
        epochs = variant.settings.get("model.experts.training.epochs")
        assert epochs in (None, read)
        assert (epochs is None) == ("model.experts.root" not in variant.settings)
