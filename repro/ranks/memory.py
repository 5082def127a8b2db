"""Keeps the memory that a training step frees, so that the next one need not request it from the system again.

By default glibc maps memory for every large tensor and unmaps it when the tensor is freed, and the system clears each page
of 4 KiB on first touch, which takes a quarter of a ResNet-50 step on a CPU. Here the heap grows instead, in huge pages where
the system allows them (transparent_hugepage set to madvise or always), and keeps freed memory. Its size is the peak usage.
"""

import ctypes
import platform
from functools import cache

MMAP_MAX, TOP_PAD, TRIM_THRESHOLD = -4, -2, -1  # mallopt(3): M_MMAP_MAX and so on, as in malloc.h
HUGEPAGE = 14  # madvise(2): MADV_HUGEPAGE
ROOM = 8 << 30  # bytes of the address range that is advised to use huge pages: no memory is used before it is touched
HUGE = 2 << 20  # bytes of a huge page on x86-64 and most others


@cache
def keep_freed() -> bool:
    """Configures the allocator of this process, once; returns whether it succeeded: only glibc has these settings."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # -1 becomes the largest size_t: never trimmed.
    kept = all(libc.mallopt(option, value) for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20)))
    # Allocating a block and freeing it at once makes the heap grow by its size; none of it has been touched yet.
    block = libc.malloc(ROOM)
    if kept and block:
        start = -(-block // HUGE) * HUGE
        libc.madvise(start, (block + ROOM - start) // HUGE * HUGE, HUGEPAGE)
    libc.free(block)
    return bool(kept)
