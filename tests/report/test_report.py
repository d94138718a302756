"""The page about runs: on folders that are made up here, with every file that a run leaves behind."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from mim4dd_pl.app.cli import main
from mim4dd_pl.report.curves import Curve
from mim4dd_pl.report.page import html_page, markdown_page
from mim4dd_pl.report.panels import MOST_DRAWN, panels, smoothed, thinned
from mim4dd_pl.report.runs import read_run

NASTY = "<script>alert(1)</script>"
CLASSES = ("cat & dog", NASTY, "$x^2$ | y")


def row(trained_on: str, accuracy: Any, **others: Any) -> dict[str, Any]:
    confusion = [[9, 1, 0], [2, 8, 0], [0, 3, 7]]
    about = {"trained_on": trained_on, "network": "MLP(depth=1)", "images": 6, "lr": 0.01, "students": 5}
    return {
        **about,
        "accuracy": accuracy,
        "std": 0.0123,
        "per_class": [0.9, 0.8, None],
        "confusion": confusion,
    } | others


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "png")
    return buffer.getvalue()


def write_curves(folder: Path, end: float = 0.3) -> None:
    """Curves of two layers and logits with the information term, and a picture that nobody wants to load."""
    with SummaryWriter(str(folder)) as writer:
        for step in range(9, 100, 10):
            for name, value in {
                "matching_loss": 1 - (1 - end) * step / 99,
                "student_lr": 0.1,
                "image_gradient_host": 0.5,
                "image_gradient_information": 0.01,
                "information_factor": 10.0,
                "bound_nats_layer1": 0.4,
                "bound_nats_layer2": 0.6,
                "bound_nats_logits": 0.8,
                "bound_nats_ceiling": 1.0986,
            }.items():
                writer.add_scalar(f"train/{name}", value, step)
        writer.add_image("synthetic/images", torch.zeros(3, 4, 4), 99)
        for step in (49, 99):
            writer.add_scalar("validation/accuracy", 0.7, step)
            writer.add_scalar("validation/accuracy_std", 0.02, step)


def write_run(folder: Path, accuracy: float = 0.8123, end: float = 0.3) -> Path:
    """A whole run; the data set's and the classes' names hold markup."""
    (folder / "analysis").mkdir(parents=True)
    (folder / "distilled/best").mkdir(parents=True)
    rows = [row("distilled (last)", accuracy), row("random real images", 0.5544), row("whole training set", 0.9511)]
    facts = {"data set": f"pets {NASTY}", "seed": "7", "versions": "torch 2.x", "machine": "abacus"}
    results = {"test": rows, "ranking": {"HLR": 0.1388}, "minutes": {"experts": 1.25, "distillation": 2.0}, **facts}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(f"seed_everything: 7 # {NASTY}\n")
    (folder / "diagnostics.json").write_text("[]")
    (folder / "analysis/analysis.json").write_text(json.dumps({"captions": {"cka.png": f"alike {NASTY}"}}))
    for name in ("comparison.png", "distilled/best/sheet.png", "analysis/cka.png"):
        (folder / name).write_bytes(png())
    about = {"mim4dd_pl": json.dumps({"classes": CLASSES})}
    save_file({"images": torch.zeros(1)}, folder / "distilled/best/distilled.safetensors", about)
    write_curves(folder, end)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "pets/version_3")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Counts elements, and refuses those that are closed in another order than opened."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_the_numbers_of_the_run(page: str) -> None:
    shown = ("81.2 ± 1.2", "55.4 ± 1.2", "95.1 ± 1.2", "2 images per class", "HLR 0.139", "90.0", "abacus", "torch 2.x")
    for text in (*shown, "seed", "3.2 (experts 1.2, distillation 2.0)", "No symptom fired.", "pets/version_3"):
        assert text in page, text


def test_the_page_is_one_file_that_fetches_nothing_and_runs_nothing(page: str) -> None:
    namespaces = re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", page)
    assert "http:" not in namespaces
    assert "https:" not in namespaces
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page
    assert {"script", "link", "iframe"}.isdisjoint(Elements(page).seen)


def test_all_text_is_escaped(page: str) -> None:
    assert NASTY not in page
    assert page.count("&lt;script&gt;") >= 4  # data set, class, recipe, caption
    assert "cat &amp; dog" in page


def test_the_page_is_well_formed_and_has_its_drawings_and_pictures(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert elements.seen.count("svg") == 5 + 1  # panels, confusion
    assert page.count("data:image/png;base64") == 3 + page.count('xlink:href="data:image/png')
    assert "viewport" in page


def test_no_id_occurs_twice_with_another_meaning(page: str) -> None:
    """A clip of one drawing must not be looked up in another."""
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    ids = [set(re.findall(r' id="([\w-]+)"', drawing)) for drawing in drawings]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_markdown_says_the_same_without_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| distilled (last) | 81.2 ± 1.2 | 6 | 0.01 | 5 |" in printed
    assert "No symptom fired." in printed
    assert "| $x^2$ \\| y | - |" in printed
    assert "<script>" not in printed.replace("\\<", "")
    assert "base64" not in printed


def test_several_runs_begin_with_a_table_and_share_their_curves(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other/version_0", accuracy=0.4321, end=0.9)
    (other / "diagnostics.json").write_text(
        json.dumps([{"name": "explosion", "step": 50, "value": 9.0, "message": "the loss explodes"}])
    )
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    both = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert both.index("81.2 ± 1.2") < both.index("43.2 ± 1.2") < both.index("matching loss") < both.index("abacus")
    assert Elements(both).seen.count("svg") == 5 + 2  # panels together, a confusion matrix each
    assert "explosion, step 50:" in both


def test_an_unfinished_run_is_shown_as_far_as_it_went(tmp_path: Path) -> None:
    write_curves(tmp_path / "version_0")
    assert main(["report", str(tmp_path / "version_0")]) == 0
    page = (tmp_path / "version_0/report.html").read_text(encoding="utf-8")
    assert "Unfinished: there are curves up to outer step 100" in page
    assert "Nobody looked" in page
    assert Elements(page).seen.count("svg") == 5


def test_results_of_a_test_are_a_page_without_curves(run: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text((run / "results.json").read_text())
    assert main(["report", str(tmp_path)]) == 0
    assert "81.2 ± 1.2" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (None, "", "is no run: it has neither results.json nor event files"),
        ("results.json", "{", "results.json is damaged"),
        ("results.json", '{"test": []}', "results.json is damaged"),
        ("results.json", '{"test": [{"accuracy": 1}]}', "results.json is damaged"),
        ("results.json", json.dumps({"test": [row("distilled", "x")]}), "results.json is damaged"),
        ("results.json", json.dumps({"test": [row("distilled", 0.5, confusion=[[1]])]}), "results.json is damaged"),
        ("results.json", json.dumps({"test": [row("distilled", 0.5)], "minutes": 3}), "results.json is damaged"),
        ("results.json", json.dumps({"test": [row("distilled", 0.5, per_class=["x"] * 3)]}), "results.json is damaged"),
        ("diagnostics.json", '[{"no": 1}]', "diagnostics.json is damaged"),
        (
            "diagnostics.json",
            '[{"name": "a", "step": "x", "value": 1, "message": "b"}]',
            "diagnostics.json is damaged",
        ),
        ("analysis/analysis.json", "[]]", "analysis.json is damaged"),
        ("distilled/best/distilled.safetensors", "x", "distilled.safetensors is damaged"),
    ],
)
def test_what_is_no_run_is_one_line(
    file: str | None, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if file is not None:
        (tmp_path / "results.json").write_text(json.dumps({"test": [row("distilled", 0.5)]}))
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert main(["report", str(tmp_path)]) == 4
    assert re.fullmatch(f"mim4dd: error: .*{re.escape(message)}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "the following arguments are required: RUN"), (["x", "--markdown", "--out=y"], "leave one of them out")],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    assert re.fullmatch(f"mim4dd: error: .*{re.escape(message)}.*\n", capsys.readouterr().err)


def test_steps_count_from_one_and_only_scalars_are_read(run: Path) -> None:
    curves = read_run(run).curves
    assert curves["validation/accuracy"].steps == [50, 100]
    assert "synthetic/images" not in curves


def test_the_terms_gradient_is_drawn_as_it_enters_the_step(run: Path) -> None:
    (panel,) = [panel for panel in panels([read_run(run).curves]) if panel.title == "pixel gradient"]
    host, term = panel.lines
    assert host.curve.values == pytest.approx([0.5] * 10)
    assert term.curve.values == pytest.approx([0.01 * 10.0] * 10)


def test_every_layer_has_its_bound_beside_the_ceiling(run: Path) -> None:
    (panel,) = [panel for panel in panels([read_run(run).curves]) if panel.title == "information, nats"]
    assert {line.label: line.curve.values[0] for line in panel.lines} == pytest.approx(
        {"layer 1": 0.4, "layer 2": 0.6, "logits": 0.8, "ceiling": 1.0986}
    )


def test_smoothing_takes_single_jumps_away_and_thinning_keeps_the_end() -> None:
    steps = list(range(1, 1001))
    jump = Curve(steps, [9.0 if step == 500 else 1.0 for step in steps])
    assert set(smoothed(jump).values) == {1.0}
    kept = thinned(Curve(steps, list(map(float, steps))))
    assert len(kept.steps) <= MOST_DRAWN
    assert kept.steps[-1] == kept.values[-1] == 1000


def test_cells_break_neither_table_nor_page(run: Path) -> None:
    read = replace(read_run(run), facts={"a|b": "<b>\n*c*"})
    assert r"| a\|b | \<b> \*c\* |" in markdown_page([read]).splitlines()
    assert "<td>&lt;b&gt;\n*c*</td>" in html_page([read], "mim4dd_pl")
