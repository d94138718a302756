"""A checkpoint is read as it was written, or refused by name."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from mim4dd_pl.basics.errors import StoredFileError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO, sealed

CONTENT = {"state_dict": {"images": torch.arange(64.0)}, "global_step": 7, "losses": [0.5, 0.25]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def refuses(path: Path, reason: str) -> bool:
    with pytest.raises(StoredFileError) as refused:
        AtomicCheckpointIO().load_checkpoint(path)
    return str(refused.value).startswith(f"{path} is no readable checkpoint ({reason}")


def test_what_was_saved_is_read_by_us_and_by_torch(path: Path) -> None:
    torch.testing.assert_close(AtomicCheckpointIO().load_checkpoint(path), CONTENT, rtol=0, atol=0)
    torch.testing.assert_close(torch.load(path, weights_only=True), CONTENT, rtol=0, atol=0)


def test_every_flipped_bit_is_noticed(path: Path, stream: Stream) -> None:
    whole = path.read_bytes()
    for bit in torch.randint(8 * len(whole), (300,), generator=stream.generator()).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert refuses(path, "it "), bit


def test_every_truncation_is_noticed(path: Path, stream: Stream) -> None:
    whole = path.read_bytes()
    for length in [0, len(whole) - 1, *torch.randint(len(whole), (60,), generator=stream.generator()).tolist()]:
        path.write_bytes(whole[:length])
        assert refuses(path, "it "), length


def test_a_checkpoint_without_a_seal_is_refused(path: Path) -> None:
    torch.save(CONTENT, path)
    assert refuses(path, "it does not end with a seal")


def test_a_compressed_archive_is_refused(path: Path) -> None:
    """A few bytes of it could fill the memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    path.write_bytes(sealed(buffer.getvalue()))
    assert refuses(path, "it holds compressed data")
