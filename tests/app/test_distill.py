"""A distillation as one call."""

import threading
from pathlib import Path

import pytest

from mim4dd_pl import DistilledDataset, distill
from mim4dd_pl.basics.errors import DataError, UserError
from tests.conftest import tiny_overlay


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_overlay(tmp_path / "tiny.yaml", steps=4)
    return tmp_path / "tiny.yaml"


def test_a_recipe_by_name_becomes_an_artefact_and_settings_act(overlay: Path) -> None:
    folder = distill("digits", overlay, steps=2, **{"model.images_per_class": 2, "seed_everything": 3})
    data = DistilledDataset(folder)
    assert folder == Path("checkpoints/digits/version_0/distilled/best")
    assert len(data) == 20
    assert (data.facts["outer steps"], data.facts["seed"]) == ("2", "3")


def test_it_works_in_a_thread_whose_signals_are_the_callers(overlay: Path) -> None:
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(distill("digits", overlay, steps=1)))
    thread.start()
    thread.join()
    assert [path.is_dir() for path in found] == [True]


@pytest.mark.usefixtures("overlay")
def test_what_is_wrong_is_raised_and_nothing_written(tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="No recipe digitz: did you mean digits"):
        distill("digitz")
    with pytest.raises(UserError, match=r"model\.images_per_class must be at least 1, got 0"):
        distill("digits", **{"model.images_per_class": 0})
    with pytest.raises(DataError, match="2000 real images per class are asked for"):
        distill("digits", **{"model.images_per_class": 2000})
    assert set(tmp_path.rglob("*")) == before
