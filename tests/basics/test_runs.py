"""Where a run keeps what, and which of several runs is the newest."""

from pathlib import Path

from mim4dd_pl.basics.runs import RunFolder


def test_versions_are_in_the_order_of_their_numbers_and_other_folders_are_none(tmp_path: Path) -> None:
    for name in ("version_2", "version_10", "version_0", "version_x", "versions", "7"):
        (tmp_path / name).mkdir()
    found = RunFolder.versions(tmp_path)
    assert [run.path.name for run in found] == ["version_10", "version_2", "version_0"]
    assert [run.version for run in found] == [10, 2, 0]
    assert RunFolder(tmp_path / "version_x").version is None is RunFolder(tmp_path / "7").version


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path.resolve())
    assert RunFolder.of_checkpoint(run.checkpoint("last")).path == run.path
