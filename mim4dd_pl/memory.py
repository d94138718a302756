"""The allocator's settings: on Linux half of an eager step at batch 100 is page faults, which they remove."""

import ctypes
import sys

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
