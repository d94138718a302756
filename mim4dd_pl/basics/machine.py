"""Where a number is made: the device, how it multiplies, what it holds and what a process has taken of it."""

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch

from mim4dd_pl.basics.errors import DataError


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may multiply float32 with 10 bits of mantissa; by default torch lets convolutions do so."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def device_name(device: torch.device) -> str:
    """The name of a CUDA device; of others their kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def machine(device: torch.device) -> str:
    """What stands beside a number: processor, threads and device."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device_name(device)}"


def free_memory(device: torch.device) -> float:
    """GiB that are free for this process, with what it holds: of the CUDA device, or of the machine."""
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 2**30
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, StopIteration):  # no Linux: of the whole machine
        return float(os.sysconf("SC_PHYS_PAGES") * page)
    return available / 2**20 + resident * page


def check_memory(what: str, size: int, remedy: str) -> None:
    """Refuse what would fill the memory of the machine.

    Raises:
        DataError: If ``size``, in bytes, is more than is free; ends with ``remedy``.
    """
    if size / 2**30 > (free := free_memory(torch.device("cpu"))):
        raise DataError(f"{what} needs {size / 2**30:,.1f} GiB of memory, {free:,.1f} are free: {remedy}.")


def peak_memory(device: torch.device) -> float:
    """GiB that this process has held at most; on a CUDA device, of its memory.

    There it is what was reserved: a replayed graph writes into a pool of its own and allocates nothing.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    import resource  # there is none on Windows

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system after every large tensor.

    The cost: the process stays as large as it ever was. Works for glibc only, for the rest of the process.

    Returns:
        Whether it was done; elsewhere (macOS, musl) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all([libc.mallopt(name, value) for name, value in settings])
