"""Freed memory that the process keeps, so that the next step finds it again."""

import ctypes
import sys
from functools import cache

_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
# Names and numbers of <malloc.h>.


@cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep what tensors leave behind; does something once per process.

    A tensor of many rows is otherwise a mapping of its own, given back to the system when it is
    freed: the next step's tensors fault every page in again, which costs more than the arithmetic
    of an element-wise operation. Kept memory stays with the process until it ends; blocks above a
    GiB are still given back.

    Returns:
        Whether the C library takes such advice (glibc does).
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    # Older versions take thresholds up to 32 MiB.
    higher = set_option(_MMAP_THRESHOLD, 2**30) or set_option(_MMAP_THRESHOLD, 2**25)
    return bool(set_option(_TRIM_THRESHOLD, 2**31 - 1) and higher)
