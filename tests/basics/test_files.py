"""Files and folders are whole or absent."""

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.files import check_room, check_sha256, locked, replacing, restore, sha256, write_text


def test_sha256_of_the_standard_example(tmp_path: Path) -> None:
    """NIST's one-block example message."""
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_was_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    """What is then on the disk: the old folder aside, the new one under its temporary name."""
    target = tmp_path / "folder"
    for name in (".folder.old", ".folder.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    restore(target)
    assert (target / "content").read_text() == ".folder.old"
    with replacing(target) as temporary:
        temporary.mkdir()
    assert list(tmp_path.iterdir()) == [target]


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "folder", os.replace
    target.mkdir()

    def fail(source: Path, destination: Path) -> None:
        if source.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        real(source, destination)

    def write() -> None:
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("new")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoredFileError, match="unchanged"):
        write()
    assert list(tmp_path.iterdir()) == [target]
    assert not list(target.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoredFileError, match=r"Cannot write .*file/target: "):
        write_text(tmp_path / "file" / "target", "text")


def test_a_full_disk_while_tensors_are_written_is_one_line(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "x.safetensors") as temporary:
            temporary.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device")

    with pytest.raises(StoredFileError, match=r"Cannot write .*x\.safetensors: I/O error: No space left"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    expected = sha256(path)
    check_sha256(path, expected, "Do this.")
    path.write_bytes(b"abb")
    with pytest.raises(StoredFileError, match=r"weights is damaged, or the manifest.json beside it: .* Do this\."):
        check_sha256(path, expected, "Do this.")
    path.unlink()
    with pytest.raises(StoredFileError, match="weights is missing"):
        check_sha256(path, expected, "Do this.")


@pytest.mark.parametrize("deep", ["", "a/b"])
def test_a_failed_write_takes_the_folders_that_it_made_along(deep: str, tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / deep), replacing(tmp_path / deep / "target") as temporary:
            temporary.mkdir()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_lock_leaves_what_is_in_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "a/b"):
        write_text(tmp_path / "a/b/file", "text")
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "file"]


def test_a_lock_that_is_held_is_refused_where_nobody_waits(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        with pytest.raises(BlockingIOError), locked(tmp_path / "a", waits=False):
            pass
        assert (tmp_path / "a/.lock").exists()
    with locked(tmp_path / "a", waits=False):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_a_network_file_system_calls_stale_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [OSError(errno.ESTALE, "Stale file handle")]

    def flock(descriptor: int, operation: int) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        assert (tmp_path / "a/.lock").exists()
    assert not answers


def test_room_is_counted_for_each_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room({tmp_path / "a/b": free // 2})
    with pytest.raises(StoredFileError, match=r"The disk of .*/c has [0-9,]+ MiB free, [0-9,]+ MiB are needed"):
        check_room({tmp_path / "a/b": 2 * free // 3, tmp_path / "c": 2 * free // 3})


def test_one_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    """Eight threads, each with a descriptor of its own, whose lock and folder come and go."""
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with locked(tmp_path / "a/b", "name"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 160
    assert set(most) == {1}
