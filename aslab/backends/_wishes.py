"""What the kernel may be asked for besides memory: huge pages, a NUMA node, pages that stay out of swap and dumps.

A wish that is refused is no error: the memory is as good without it. The reason is logged, once for each wish of a
backend. Numbers are those of Linux, where all of this is from: madvise(2), mlock2(2), mbind(2), mmap(2).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ._libc import madvise

log = logging.getLogger("aslab")

HUGE_PAGE = 2 * 2**20
MAP_HUGETLB = 0x40000
MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_DONTDUMP = 13, 14, 16
MLOCK_ONFAULT = 1
MPOL_PREFERRED = 1
MOST_NODES = 1024
_MBIND = {"x86_64": 237, "aarch64": 235, "riscv64": 235}
"""The number of the system call, for where libnuma is not installed."""
_TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_KSM = Path("/sys/kernel/mm/ksm")
_libc = ctypes.CDLL(None, use_errno=True)

Grant = Callable[[int, int], object]


class Wishes:
    """The wishes of one backend, and which of them it has been told are refused. Usable from any thread."""

    def __init__(self, *, mlock: bool, node: int | None, dont_dump: bool, apart: bool) -> None:
        self._wanted: dict[str, Grant] = {}
        if node is not None:  # before the first touch: it says where pages will come from
            self._wanted["numa_node"] = partial(_prefer_node, node=node)
        if dont_dump:
            self._wanted["dont_dump"] = partial(_advise, advice=MADV_DONTDUMP)
        if apart:
            self._wanted["unmergeable"] = _keep_apart
        if mlock:  # on fault: this call itself is quick, and pages are locked as they are touched
            self._wanted["mlock"] = _lock_on_fault
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, address: int, nbytes: int) -> None:
        """Ask for everything, for these whole pages that nobody has touched yet."""
        for name, grant in self._wanted.items():
            self.attempt(name, partial(grant, address, nbytes))

    def attempt(self, name: str, call: Callable[[], object]) -> bool:
        """Whether the call was granted; if not, its reason is logged the first time."""
        try:
            call()
        except OSError as exc:
            with self._lock:
                first = name not in self._told
                self._told.add(name)
            if first:
                log.warning("Mmap does without %s: %s", name, exc.strerror)
            return False
        return True


def ask_for_huge_pages(address: int, nbytes: int) -> None:
    """Let the kernel use transparent huge pages here.

    :raises OSError: if it has none, or they are switched off
    """
    try:
        off = "[never]" in _TRANSPARENT.read_text()
    except OSError:
        off = False
    if off:
        raise OSError(errno.EINVAL, f"{_TRANSPARENT} says never")
    _advise(address, nbytes, advice=MADV_HUGEPAGE)


def map_explicit(nbytes: int, align: int) -> mmap.mmap:
    """A mapping of reserved huge pages (hugetlbfs), with room to begin at a multiple of ``align``.

    :raises OSError: if not enough of them are reserved
    """
    _only_on_linux()
    size = _explicit_size()
    slack = align if align > size else 0
    whole = -(-(nbytes + slack) // size) * size
    try:
        return mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    except (OSError, OverflowError) as exc:
        raise OSError(
            errno.ENOMEM, "not enough are reserved in vm.nr_hugepages; transparent ones instead"
        ) from exc


@functools.cache
def _explicit_size() -> int:
    """Bytes of a reserved huge page, as the system is set up."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Hugepagesize:"))
    except (OSError, StopIteration):
        return HUGE_PAGE


def _only_on_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux has this")


def _advise(address: int, nbytes: int, *, advice: int) -> None:
    _only_on_linux()
    madvise(address, nbytes, advice)


def _keep_apart(address: int, nbytes: int) -> None:
    """Keep pages from being merged with equal ones, which tells a neighbour what they contain.

    It matters where the whole process was made mergeable (PR_SET_MEMORY_MERGE). Without KSM nothing is merged.
    """
    if _KSM.exists():
        _advise(address, nbytes, advice=MADV_UNMERGEABLE)


def _lock_on_fault(address: int, nbytes: int) -> None:
    _only_on_linux()
    _check(_libc.mlock2(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), MLOCK_ONFAULT), "RLIMIT_MEMLOCK")


def _prefer_node(address: int, nbytes: int, *, node: int) -> None:
    """Take pages from this node while it has some: of another one they are slow, but not missing."""
    _only_on_linux()
    mbind = _mbind()
    bits = ctypes.sizeof(ctypes.c_ulong) * 8
    mask = (ctypes.c_ulong * (MOST_NODES // bits))()
    mask[node // bits] = 1 << node % bits
    _check(
        mbind(
            ctypes.c_void_p(address),
            ctypes.c_size_t(nbytes),
            MPOL_PREFERRED,
            mask,
            ctypes.c_ulong(MOST_NODES + 1),  # the kernel reads one bit less than it is told
            0,
        ),
        f"is there a node {node}?",
    )


@functools.cache
def _mbind() -> Callable[..., int]:
    """The call, from libnuma where that is installed, or by its number.

    :raises OSError: where neither is known
    """
    try:
        return ctypes.CDLL("libnuma.so.1", use_errno=True).mbind
    except (OSError, AttributeError):
        import platform  # takes long to import

        number = _MBIND.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "libnuma is not installed")
    return partial(_libc.syscall, ctypes.c_long(number))


def _check(failed: int, hint: str) -> None:
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)} ({hint})")
