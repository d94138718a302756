"""Sweeps: what they run, what they skip, what they refuse, and the table of what is finished."""

import csv
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from mim4dd_pl.app.cli import main
from mim4dd_pl.basics.files import locked
from mim4dd_pl.sweep import runner
from mim4dd_pl.sweep.cells import Cell, cells
from mim4dd_pl.sweep.plan import grid, read_sweep
from mim4dd_pl.sweep.runner import run
from tests.conftest import CONFIGS, ROOT

DIGITS, SMOKE = CONFIGS / "distill/digits.yaml", CONFIGS / "with/smoke.yaml"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
RECIPE = "trainer: {max_steps: 4}\n"
GRID = ["sweep", "-c", "recipe.yaml", "--key", "model.weight", "--values", "0", "0.2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small ``recipe.yaml``; the cells' processes find the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def finish(cell: Cell, last: float, best: float | None = None) -> None:
    """What a run of the cell would leave."""
    cell.begin()
    rows = [{"trained_on": "distilled (last)", "accuracy": last, "std": 0.01}]
    if best is not None:
        rows.insert(0, {"trained_on": "distilled (best, step 2)", "accuracy": best, "std": 0.01})
    minutes = {"experts": 5.0, "distillation": 1.0, "closing table": 0.5}
    run = cell.folder / "version_0"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"test": rows, "minutes": minutes}))


def finish_grid(out: Path) -> None:
    """0 gives 0.90 and 0.80, 0.2 gives 0.95 and 0.86."""
    plan = grid([Path("recipe.yaml")], "model.weight", ["0", "0.2"], [0, 1])
    for cell, accuracy in zip(cells(plan, out), (0.90, 0.95, 0.80, 0.86), strict=True):
        finish(cell, accuracy)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_seeds_of_other_data_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that have changed under the same path between two seeds, not those of two variants."""
    plan = grid([Path("recipe.yaml")], "model.weight", ["0", "0.2"], [0, 1])
    for cell, data in zip(cells(plan, here / "out"), ("one", "two", "one", "three"), strict=True):
        finish(cell, 0.9)
        path = cell.folder / "version_0/results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "training images": data}))
    assert main([*GRID, "--seeds", "0", "1", "--out", "out"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("other data"))
    assert line == "other data   0.2: these seeds were distilled from different training images"


# --- a real one


def test_a_sweep_runs_its_cells_and_a_second_call_runs_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = yaml.safe_load(DIGITS.read_text())["trainer"]["callbacks"]
    callbacks[0]["init_args"].update(num_students=2, training={"epochs": 2})
    steps = {"max_steps": 1, "val_check_interval": 1}
    (here / "tiny.yaml").write_text(yaml.safe_dump({"whole_set": False, "trainer": {**steps, "callbacks": callbacks}}))
    (here / "sweep.yaml").write_text(
        f"recipe: {DIGITS}\nwith: [{SMOKE}, tiny.yaml]\nseeds: [3]\n"
        "variants: {one: {}, two: {model.images_per_class: 2}}"
    )
    assert main(["sweep", "-c", "sweep.yaml", "--out", "out", "--jobs", "2"]) == 0
    last = {}
    for variant, images in (("one", 10), ("two", 20)):
        results = json.loads((here / f"out/{variant}/seed_3/version_0/results.json").read_text())
        assert results["test"][0]["images"] == images
        assert "whole training set" not in [row["trained_on"] for row in results["test"]]
        last[variant] = results["test"][0]["accuracy"]
    row = table(here / "out/results.csv")["two"]
    assert float(row["difference_fraction"]) == pytest.approx(last["two"] - last["one"], abs=1e-6)
    assert (row["pairs"], row["std_fraction"], row["low_95_fraction"]) == ("1", "", "")
    assert "step 1/1" in (here / "out/one/seed_3/log.txt").read_text()
    capsys.readouterr()
    assert main(["sweep", "-c", "sweep.yaml", "--out", "out"]) == 0
    assert "2 cells, 2 of them finished" in capsys.readouterr().out


def test_a_failed_cell_is_told_with_its_reason_and_the_others_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fit(monkeypatch, "import sys; bad = '--model.weight=0' in sys.argv; print('the reason'); sys.exit(int(bad))")
    assert main([*GRID, "--seeds", "0", "--out", "out"]) == 1
    out = capsys.readouterr().out
    assert "1/2  0, seed 0: failed: the reason (see out/0/seed_0/log.txt)" in out
    assert "2/2  0.2, seed 0: failed: left no results.json" in out
    assert "missing      2 of 2: 0, seed 0; 0.2, seed 0" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_cells_too(
    number: int, code: int, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fit(monkeypatch, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    log = here / "out/0/seed_0/log.txt"

    def stop_once_a_cell_runs() -> None:
        while not (log.is_file() and log.read_text().strip()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_once_a_cell_runs, daemon=True).start()
    assert main([*GRID, "--seeds", "0", "--out", "out"]) == code
    assert capsys.readouterr().err.endswith("ted; the same command goes on\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_a_cell_that_somebody_else_runs_is_waited_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fit(monkeypatch, "")
    (cell,) = cells(grid([Path("recipe.yaml")], "model.weight", ["0"], [0]), here / "out")
    held = threading.Event()

    def somebody_else() -> None:
        with locked(cell.folder.parent, cell.folder.name):
            held.set()
            time.sleep(0.3)
            finish(cell, 0.5)

    other = threading.Thread(target=somebody_else)
    other.start()
    held.wait()
    (ended,) = run([cell], 1)
    other.join()
    assert ended.error is None
    assert not cell.log.exists()


def test_a_signal_ends_a_sweep_that_waits_for_somebody_elses_cell(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fit(monkeypatch, "")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with locked(here / "out/0", "seed_0"):
        assert main([*GRID[:-1], "--seeds", "0", "--out", "out"]) == 130
    assert not list(here.rglob("log.txt"))


def test_a_cell_that_does_not_end_by_itself_is_killed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fit(
        monkeypatch,
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
    )
    monkeypatch.setattr(runner, "_GRACE", 0.2)
    (cell,) = cells(grid([Path("recipe.yaml")], "model.weight", ["0"], [0]), here / "out")

    def stop_once_it_runs() -> None:
        while not (cell.log.is_file() and cell.log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_it_runs, daemon=True).start()
    begun = time.monotonic()
    assert main([*GRID[:-1], "--seeds", "0", "--out", "out"]) == 143
    assert time.monotonic() - begun < 10


def fake_fit(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let each cell run ``program`` in place of ``mim4dd fit``, with the same arguments."""
    begin = Cell.begin
    monkeypatch.setattr(Cell, "begin", lambda cell: [sys.executable, "-c", program, *begin(cell)[4:]])


# --- finished and unfinished cells


def test_one_cell_of_an_array_is_the_only_one_that_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fit(monkeypatch, "")
    main([*GRID, "--seeds", "0", "1", "--out", "out", "--cell", "3"])
    assert [path.parent for path in here.glob("out/*/*/log.txt")] == [here / "out/0.2/seed_1"]


def test_a_cell_with_a_checkpoint_goes_on_and_one_of_other_settings_starts_anew(here: Path) -> None:
    old, new = (cells(grid([Path("recipe.yaml")], "model.weight", [v], [0]), here)[0] for v in ("1", "1.0"))
    new = Cell(new.variant, 0, old.folder)
    assert "--ckpt_path=last" not in old.begin()
    (old.folder / "version_0/checkpoints").mkdir(parents=True)
    (old.folder / "version_0/checkpoints/last.ckpt").touch()
    assert old.begin()[-1] == "--ckpt_path=last"
    assert "--ckpt_path=last" not in new.begin()


@pytest.mark.parametrize("cell", [[], ["--cell", "1"]], ids=["all", "one"])
def test_a_finished_cell_with_other_settings_is_refused_by_name(
    cell: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_grid(here / "out")
    (here / "recipe.yaml").write_text("trainer: {max_steps: 8}\n")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main([*GRID, "--seeds", "0", "1", "--out", "out", *cell]) == 4
    assert "out/0/seed_0 is finished with other settings (recipe 0.trainer.max_steps was 4, is 8): choose another" in (
        capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_later_seed_renumbers_no_cell() -> None:
    few, more = (cells(grid([DIGITS], "model.momentum", ["0", "0.5"], seeds), Path()) for seeds in ([0], [0, 1]))
    assert more[:2] == few


# --- tables


def test_the_table_is_that_of_the_finished_cells(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish_grid(here / "out")
    assert main([*GRID, "--seeds", "0", "1", "--out", "out"]) == 0
    rows = table(here / "out/results.csv")
    assert rows["0"]["accuracy_fraction"] == "0.850000"
    assert rows["0"]["difference_fraction"] == ""
    assert float(rows["0"]["std_fraction"]) == pytest.approx(0.1 / 2**0.5, abs=1e-6)
    assert (rows["0.2"]["difference_fraction"], rows["0.2"]["standard_error_fraction"]) == ("0.055000", "0.005000")
    assert float(rows["0.2"]["high_95_fraction"]) == pytest.approx(0.055 + 0.005 * 12.7062, abs=1e-6)  # t, n - 1 = 1
    assert rows["0.2"]["minutes_without_experts"] == "1.500000"
    assert "| 0.2 | 90.5 +- 6.4 (2) | 0 | +5.50 [-0.85, +11.85] (2) | 1.5 |" in (here / "out/results.md").read_text()
    assert "+5.50 [-0.85," in capsys.readouterr().out
    assert (here / "out/figure.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_paired_over_the_seeds_that_both_have(here: Path) -> None:
    plan = grid([Path("recipe.yaml")], "model.weight", ["0", "0.2"], [0, 1, 2])
    every = cells(plan, here / "out")
    for number, accuracy in ((0, 0.5), (1, 0.625), (3, 0.75)):  # both of seed 0, one of seed 1
        finish(every[number], accuracy)
    assert main([*GRID, "--seeds", "0", "1", "--cell", "0", "--out", "out"]) == 0
    row = table(here / "out/results.csv")["0.2"]
    assert (row["seeds"], row["pairs"], row["difference_fraction"]) == ("2", "1", "0.125000")


def test_every_cell_has_its_line(here: Path) -> None:
    plan = grid([Path("recipe.yaml")], "model.weight", ["0"], [7])
    finish(cells(plan, here / "out")[0], 0.5, best=0.75)
    assert main([*GRID[:-1], "--seeds", "7", "--out", "out"]) == 0
    row = table(here / "out/cells.csv")["0"]
    names = ("seed", "accuracy_last_fraction", "accuracy_best_fraction", "std_over_students_fraction")
    assert [row[name] for name in names] == ["7", "0.500000", "0.750000", "0.010000"]
    assert (row["minutes_experts"], row["minutes_closing_table"]) == ("5.000000", "0.500000")


# --- files


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_parses(path: Path) -> None:
    command, about, *_ = path.read_text().splitlines()
    assert command == f"# mim4dd sweep -c configs/sweeps/{path.name}"
    assert about.startswith("# ")
    variants = yaml.safe_load(path.read_text())["variants"]
    recipes = [path.parent / variant["recipe"] for variant in variants.values() if "recipe" in variant]
    if missing := [recipe.name for recipe in recipes if not recipe.is_file()]:
        pytest.skip(f"recipes to come: {', '.join(missing)}")
    plan = read_sweep(path)
    assert [variant.name for variant in plan.variants] == list(variants)
    assert plan.seeds == tuple(range(5 if path.stem == "formation" else 3))
    assert all(CONFIGS / "with/no_whole_set.yaml" in variant.recipe for variant in plan.variants)


def test_overlays_come_between_the_recipe_and_the_settings(here: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (here / f"{name}.yaml").write_text("threads: 1")
    (here / "sweep.yaml").write_text(
        "recipe: recipe.yaml\nwith: a.yaml\nseeds: [0]\n"
        "variants: {x: {}, y: {recipe: d.yaml, with: [b.yaml], against: null, data.zca: true, model.lr: 1.0e-3}}"
    )
    x, y = read_sweep(Path("sweep.yaml"), [Path("c.yaml")]).variants
    assert [path.stem for path in x.recipe] == ["recipe", "a", "c"]
    assert y.arguments()[:4] == ["--config=d.yaml", "--config=a.yaml", "--config=b.yaml", "--config=c.yaml"]
    assert y.arguments()[4:] == ["--data.zca=true", "--model.lr=0.001"]
    assert y.against is None


HEAD = "recipe: recipe.yaml\nseeds: [0]\n"
WRONG = [
    # a sweep file, more arguments, what the line says
    (
        HEAD + "variants: {a: {}}\nvalues: [1]",
        [],
        "no key values in a sweep file; expected recipe, with, seeds, variants",
    ),
    (HEAD, [], "sweep.yaml has no variants: give a sweep file, or a recipe with --key"),
    (HEAD + "variants: {}", [], "variants holds {}, expected names"),
    (HEAD + "variants: {a: 3}", [], "variants.a holds 3, expected dotted keys"),
    (
        HEAD + "variants: {a: {weight: 3}}",
        [],
        "variants.a: a setting is a dotted key, e.g. model.information.weight, got weight",
    ),
    (HEAD + "variants: {a: {trainer.logger: null}}", [], "trainer.logger is set by the sweep (--out)"),
    (HEAD + "variants: {a/b: {}}", [], "variants: a name is letters, digits"),
    (HEAD + "variants: {0.2: {}, .2: {}}", [], "variants: a name is a text, put it in quotes; got 0.2"),
    (HEAD + "variants: {a: {}, a: {}}", [], "line 3: a is set twice"),
    (HEAD + "variants: {a: {}, b: {against: c}}", [], "variants.b.against must name another variant (a, b), got 'c'"),
    (HEAD + "variants: {a: {against: a}}", [], "variants.a.against must name another variant (a), got 'a'"),
    ("seeds: [0]\nvariants: {a: {}}", [], "variants.a has no recipe"),
    (HEAD + "variants: {a: {recipe: 3}}", [], "variants.a.recipe must be a path or a list of paths, got 3"),
    (HEAD + "variants: {a: {with: nowhere.yaml}}", [], "No recipe nowhere.yaml"),
    ("recipe: recipe.yaml\nvariants: {a: {}}", [], "seeds must be whole numbers, at least one"),
    (HEAD + "variants: {a: {}}", ["--seeds", "-1"], "none negative, e.g. 0 1 2; got [-1]"),
    (HEAD + "variants: {a: {}}", ["--seeds", "1", "1"], "seeds must differ, got 1 1"),
    (HEAD + "variants: {a: {}}", ["--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
    (HEAD + "variants: {a: {}}", ["--cell", "1"], "--cell must lie in 0..0, got 1"),
    (HEAD + "variants: {a: {}}", ["--jobs", "0"], "--jobs must be at least 1, got 0"),
    (HEAD + "variants: {a: {}}", ["--values", "1"], "--values needs --key"),
    (HEAD + "variants: {a: {}}", ["--job", "1"], "unrecognized arguments: --job 1"),
    (RECIPE, ["--key", "model.weight"], "--key needs --values"),
    (RECIPE, ["--key", "model.weight", "--values"], "expected at least one argument"),
    (RECIPE, ["--key", "weight", "--values", "1", "--seeds", "0"], "a setting is a dotted key"),
    (RECIPE, ["--key", "model.weight", "--values", "1", "1", "--seeds", "0"], "must differ, got 1 twice"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_a_wrong_sweep_is_one_line_and_leaves_nothing(
    content: str, arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "sweep.yaml").write_text(content)
    before = sorted(here.iterdir())
    assert main(["sweep", "-c", "sweep.yaml", *arguments]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("mim4dd: error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert sorted(here.iterdir()) == before


def test_help_of_the_program_names_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["sweep", "--help"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        assert "mim4dd sweep" in capsys.readouterr().out
