"""Finding the files to read."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from .._errors import BadInput, printable, why


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, or a symlink to one."""

    path: str
    size: int
    """Bytes, when it was found; it may have changed since."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or folder that could not be read, and why."""

    path: str
    error: str


@dataclass(slots=True)
class Found:
    """What a walk came across."""

    files: list[File] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


def check_paths(paths: Iterable[str]) -> None:
    """Refuse what is not there, or is neither file nor folder. Blocks.

    :raises BadInput: naming the first such path
    """
    for path in paths:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116  (paths stay strings: they are bytes in the end)
        except OSError as exc:
            raise BadInput(f"{printable(path)}: {why(exc)}") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BadInput(f"{printable(path)}: neither a file nor a folder")
        if made_up(path):
            raise BadInput(f"{printable(path)}: made up by the kernel as it is read; it may have no end")


def made_up(path: str) -> bool:
    """Whether a path is on a file system that has no blocks, such as proc and sysfs.

    The sizes of its files say nothing: some have no end, some wait for events. ``df`` leaves them out,
    too. Blocks.
    """
    return os.statvfs(path).f_blocks == 0


def find_files(paths: Iterable[str], skip: Collection[str] = ()) -> Found:
    """Walk files and folders, each file once. Blocks.

    Symlinks to files are files; symlinks to folders are left alone, unless the user named one. Sockets,
    pipes, devices, and what the kernel makes up (see `made_up`) are passed over.

    :param skip: names of folders to leave out
    """
    walk = _Walk(skip)
    for path in paths:
        walk.visit(path)
    walk.found.files.sort(key=lambda file: os.fsencode(file.path))
    return walk.found


class _Walk:
    def __init__(self, skip: Collection[str]) -> None:
        self.found = Found()
        self._skip = skip
        self._seen: set[str] = set()
        self._made_up: dict[int, bool] = {}

    def visit(self, path: str) -> None:
        """Take one path of the command line, in whichever way it is spelled."""
        # What makes two paths the same file is the folder they are in, and their name there: a
        # symlink beside the file it leads to is a second file.
        if os.path.isdir(path):  # noqa: PTH112
            self._walk(path, os.path.realpath(path))
            return
        folder, name = os.path.split(path)
        try:
            self._take(path, os.path.join(os.path.realpath(folder), name), os.stat(path))  # noqa: PTH116, PTH118
        except OSError as exc:
            self._miss(path, exc)

    def _walk(self, top: str, real_top: str) -> None:
        folders = [(top, real_top)]
        while folders:
            folder, real = folders.pop()
            if real in self._seen:
                continue
            self._seen.add(real)
            try:
                if self._is_made_up(folder, os.stat(folder)):  # noqa: PTH116
                    continue
                with os.scandir(folder) as entries:
                    for entry in entries:
                        inside = os.path.join(real, entry.name)  # noqa: PTH118
                        if not self._is_folder(entry):
                            self._look_at(entry, inside)
                        elif entry.name not in self._skip:
                            folders.append((entry.path, inside))
            except OSError as exc:
                self._miss(folder, exc)

    @staticmethod
    def _is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir(follow_symlinks=False)
        except OSError:
            return False  # looking at it will say why

    def _look_at(self, entry: os.DirEntry[str], real: str) -> None:
        try:
            self._take(entry.path, real, entry.stat())
        except OSError as exc:
            self._miss(entry.path, exc)

    def _take(self, path: str, real: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode) and real not in self._seen and not self._is_made_up(path, status):
            self._seen.add(real)
            self.found.files.append(File(path, status.st_size))

    def _is_made_up(self, path: str, status: os.stat_result) -> bool:
        """Asked once for each file system."""
        known = self._made_up.get(status.st_dev)
        if known is None:
            known = self._made_up[status.st_dev] = made_up(path)
        return known

    def _miss(self, path: str, error: OSError) -> None:
        self.found.unreadable.append(Unreadable(path, why(error)))
