"""Files and folders are whole or absent."""

from pathlib import Path

import pytest

from mim4dd_pl.errors import StoredFileError
from mim4dd_pl.files import check_sha256, replacing, sha256, write_text


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


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoredFileError, match=r"Cannot write .*file/target: "):
        write_text(tmp_path / "file" / "target", "text")


def test_a_flipped_bit_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    expected = sha256(path)
    check_sha256(path, expected, "Do this.")
    path.write_bytes(b"abb")
    with pytest.raises(StoredFileError, match=r"weights is damaged: .* Do this\."):
        check_sha256(path, expected, "Do this.")
    path.unlink()
    with pytest.raises(StoredFileError, match="weights is missing"):
        check_sha256(path, expected, "Do this.")
