"""The allocator keeps what is freed, and stays as it is where it is not glibc's."""

import ctypes
import platform
import subprocess
import sys

import pytest

from mim4dd_pl.basics import machine as memory

HELD = """
from pathlib import Path
import torch
from mim4dd_pl.basics.machine import keep_freed_memory
done = {call}
tensor = torch.ones(50_000_000)
del tensor
resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(done, int(peak.split()[1]) - int(resident.split()[1]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept_when_asked() -> None:
    def given_back(call: str) -> tuple[str, int]:
        command = [sys.executable, "-c", HELD.format(call=call)]
        done, kibibytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return done, int(kibibytes)

    assert given_back("None")[1] > 150_000
    done, kibibytes = given_back("keep_freed_memory()")
    assert done == "True"
    assert kibibytes < 50_000


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without glibc's functions
    assert not memory.keep_freed_memory()
