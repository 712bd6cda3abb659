"""The third act: the checksum service against a plain one. They take turns, and who is first changes each time.

So where files are not yet in the page cache, each waits for the disk about half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from ..._checks import format_size
from ...backends import Mmap
from .._errors import printable
from ._files import Found, Unreadable
from ._other import Other, other
from ._pair import Pair
from ._plain import Sums, hash_plainly
from ._service import Outcome, Service, Settings, open_service
from ._words import OURS, THEIRS, Told, Words, and_broken, count, duration

FEW = 64
"""So many files are not split: in parts, there might not be enough for all threads. They are hashed twice."""
PARTS = 8
"""Parts that more files are split into."""
SECOND = 3.0
"""The second time is left out if the first took longer, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksums(Told):
    """What the third act found."""

    files: int = 0
    """Files whose checksums were made."""
    nbytes: int = 0
    """Bytes read by the service."""
    seconds: float = 0.0
    """For the service."""
    plain_seconds: float = 0.0
    """For a thread for each file."""
    memory: int = 0
    """Most bytes of slabs that the service had."""
    left: int = 0
    """Files left out when time was up."""
    broken_links: int = 0
    """Symlinks that lead to no file; they are skipped."""
    differing: list[str] = field(default_factory=list)
    """Files with different checksums."""
    unreadable: list[Unreadable] = field(default_factory=list)

    def words(self) -> Words:
        if not self.files:
            return [(f"There were no files to read{and_broken(self.broken_links)}.", "")]
        some = f"{self.files:,} of {self.files + self.left:,} files" if self.left else count(self.files, "file")
        return [
            (f"SHA-256 of {some}{and_broken(self.broken_links)}: ", ""),
            (duration(self.seconds), OURS),
            (f", within {format_size(self.memory)}; a thread for each: ", ""),
            (duration(self.plain_seconds), THEIRS),
        ]

    def wrong(self) -> list[str]:
        wrong = []
        if self.differing:
            first = printable(self.differing[0])
            wrong.append(f"{count(len(self.differing), 'checksum')} differ; the first is of {first}")
        if self.unreadable:
            wrong.append(f"{len(self.unreadable):,} of the files and folders could not be read")
        return wrong

    def well(self) -> str:
        return "both ways made the same checksums" if self.files else ""

    def missed(self) -> Sequence[Unreadable]:
        return self.unreadable


async def checksums(pair: Pair, found: Found, settings: Settings, seconds: float | None) -> Checksums:
    """Hash files by both ways.

    :param seconds: begin no further part after so many; None means to hash all
    """
    files = found.files
    if not files:
        return Checksums(unreadable=found.unreadable, broken_links=found.broken)
    nbytes = 0

    def progress(more: int, _: int) -> None:
        nonlocal nbytes
        nbytes += more
        pair.note = f"{format_size(nbytes)} read"

    async with other(hash_plainly) as process, open_service(settings, Mmap(), progress) as service:
        both = Both(service, process, pair)
        await process.hear()  # it is ready
        began = anyio.current_time()

        def passed() -> float:
            return anyio.current_time() - began

        times = 1
        if len(files) > FEW:
            for part in range(PARTS):
                if seconds is None or passed() < seconds:
                    await both.hash(files[part::PARTS])
        else:
            await both.hash(files)
            if passed() < SECOND:
                await both.hash(files)
                times = 2
        outcome = await service.outcome(patience=1.0)
    return _told(outcome, both, times, found)


def _told(outcome: Outcome, both: Both, times: int, found: Found) -> Checksums:
    ours, plain = outcome.sums, both.sums
    unreadable = {one.path: one for one in (*found.unreadable, *outcome.unreadable)}
    return Checksums(
        files=len(ours),
        nbytes=outcome.nbytes // times,
        seconds=outcome.seconds / times,
        plain_seconds=both.plain_seconds / times,
        memory=outcome.stats.slab_size * outcome.stats.slab_max,
        left=len(found.files) - len(plain),
        broken_links=found.broken,
        differing=[path for path, digest in plain.items() if ours.get(path) != digest],
        unreadable=list(unreadable.values()),
    )


class Both:
    """Both ways, in turns."""

    def __init__(self, service: Service, process: Other, pair: Pair) -> None:
        self.sums: Sums = {}
        """The plain ones."""
        self.plain_seconds = 0.0
        self._service = service
        self._process = process
        self._pair = pair
        self._turn = self._files = 0

    async def hash(self, part: Sequence[str]) -> None:
        """Hash these by one way, then by the other."""
        ways = [self._ours, self._plain]
        for way in ways if self._turn % 2 == 0 else reversed(ways):
            await way(part)
        self._turn += 1
        self._files += len(part)
        self._pair.ours.value = self._files / self._service.seconds
        self._pair.theirs.value = self._files / self.plain_seconds

    async def _ours(self, part: Sequence[str]) -> None:
        await self._service.hash(part)

    async def _plain(self, part: Sequence[str]) -> None:
        sums, seconds = await self._process.ask(part)
        self.sums |= sums
        self.plain_seconds += seconds
