"""What the commands of ``aslab lab`` share: the app, loops, optional dependencies, output."""

from __future__ import annotations

import enum
import importlib
import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from .._errors import BadInput, printable, why

EXTRA = "needs the extra 'lab': run pip install '.[lab]' in a clone of aslab"


class LabLoop(enum.StrEnum):
    """The event loops that support simulated time."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


app: typer.Typer = typer.Typer(
    help="Play scenarios of memory that is slow, stuck or refused.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def need(module: str, library: str) -> Any:
    """Import a module of the lab that needs a library of the extra.

    :raises BadInput: if the library is not installed
    """
    try:
        return importlib.import_module(f"aslab.lab.{module}")
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != library:
            raise
        raise BadInput(f"the lab {EXTRA}") from None


def check_machines(names: Collection[str], known: Collection[str], where: str = "") -> None:
    """Refuse an unknown machine.

    :raises BadInput: with the known ones
    """
    for name in names:
        if name not in known:
            raise BadInput(f"--machine {printable(name)}{where}: must be one of {', '.join(known)}")


def check_writable(path: Path | None) -> None:
    """Check that a file can be written, before a long run rather than after it."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"cannot write {printable(str(path))}: it is a folder, or its folder does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"cannot write {printable(str(path))}: no permission")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into one line that names the file."""
    try:
        yield
    except OSError as exc:
        raise BadInput(f"cannot write {printable(str(path))}: {why(exc)}") from None


def print_json(told: object) -> None:
    """Print one JSON value."""
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")
