"""Figures for programs: one JSON object for every benchmark, and a history with a line for each run.

The object has the name of the benchmark, versions, whether the compiled fast path is in use, facts about the
machine, the contenders, and ``rows``. A row has ``loop``, ``case``, ``contender``, ``what`` and ``unit``;
whether more or less is ``better``; the value of each of its ``rounds``, their ``best``, and their ``median``
with the quartiles ``low`` and ``high``; and ``ratio``, the same of its ratio to the contender ``against`` in
each round, or null.

The docs of this project take their figures from such a history (``scripts/figures.py``). It keeps a few runs of
each benchmark, and no raw values, so that it stays small.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aslab

from ..cli._errors import BadInput, why
from ._measured import Row, Spread, spread

SCHEMA = 1
KEPT = 5
"""Runs of each benchmark that a history keeps."""


def as_json(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """All that was measured, and on what."""
    return {**_head(name, rows), "rows": [_as_json(row) for row in rows]}


def compiled() -> bool:
    """Whether the compiled fast path is in use."""
    return not inspect.isfunction(aslab.Buffer.free)


class History:
    """A file with a line for each run.

    :raises BadInput: if it cannot be read and written, or has something else in it
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("a+", encoding="utf-8") as file:  # so it is also known that it can be written
                file.seek(0)
                self._lines = file.read().splitlines()
            self._names = [str(json.loads(line)["bench"]) for line in self._lines]
        except OSError as exc:
            raise BadInput(f"--record: cannot use {str(path)!r}: {why(exc)}") from None
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"--record: {str(path)!r} is no history of benchmarks") from None

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Add a line, and drop lines of the same benchmark that are older than the last few.

        :raises BadInput: if it cannot be written
        """
        older = [number for number, other in enumerate(self._names) if other == name][: 1 - KEPT]
        lines = [line for number, line in enumerate(self._lines) if number not in older]
        figures = {" | ".join((*row.key[:3], str(row.key.quantity))): _figures(row) for row in rows}
        told = {**_head(name, rows), "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", "rows": figures}
        lines.append(json.dumps(told, ensure_ascii=False))
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            new.replace(self._path)
        except OSError as exc:
            raise BadInput(f"--record: cannot write {str(self._path)!r}: {why(exc)}") from None


def _figures(row: Row) -> list[float]:
    """Best, median and quartiles; then, where there is one, median and quartiles of the ratio."""
    values = [row.best, *spread(row.rounds), *(spread(row.ratios) if row.ratios else ())]
    return [float(f"{value:.4g}") for value in values]


def _head(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "bench": name,
        "aslab": _version("aslab"),
        "python": platform.python_version(),
        "compiled": compiled(),
        "loops": {loop: _version(loop) for loop in dict.fromkeys(row.key.loop for row in rows) if loop},
        "machine": _machine(),
        "contenders": list(dict.fromkeys(row.key.contender for row in rows)),
    }


def _version(name: str) -> str:
    if name == "asyncio":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _machine() -> dict[str, Any]:
    """What a figure may depend on, and nothing that tells whose machine it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "system": sys.platform,
        "architecture": platform.machine(),
        "processors": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def _as_json(row: Row) -> dict[str, Any]:
    quantity = row.key.quantity
    return {
        "loop": row.key.loop,
        "case": row.key.case,
        "contender": row.key.contender,
        "what": quantity.what,
        "unit": quantity.unit,
        "better": "more" if quantity.more_is_better else "less",
        "best": row.best,
        "median": _spread(spread(row.rounds)),
        "against": row.against or None,
        "ratio": _spread(spread(row.ratios)) if row.ratios else None,
        "rounds": list(row.rounds),
    }


def _spread(values: Spread) -> dict[str, float]:
    return values._asdict()
