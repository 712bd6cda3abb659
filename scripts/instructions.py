"""Instructions of a hit and its free, counted by callgrind: a guard that no busy machine disturbs.

    python scripts/instructions.py [--record] [--json]

Counts them for the Python classes (pure) and, where it is built, for the compiled fast path, and compares with the
bounds recorded in scripts/instructions.toml for this build of Python. A pair may take at most 10 % more. With
--record the counts become the bounds: do that when a change is worth its price, and say so in its commit.

Each way runs 1,000 and 2,000 times, and the difference counts, so that the start of Python and of the loop is not
part of it. The garbage collector is off meanwhile, and hashes are those of PYTHONHASHSEED=0. callgrind writes out
its counts whenever getloadavg of the C library is called, which is therefore what the program calls in between.

Exit code 0 if all is within bounds, or if valgrind is not installed, which is told in a line; 1 if not, or if the
program fails; 2 for a bad option. Takes some 40 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aslab  # noqa: E402
from aslab.backends import Heap  # noqa: E402

BOUNDS = ROOT / "scripts" / "instructions.toml"
WAYS = (
    "alloc_nowait, free",
    "await alloc, free",
    "await alloc, view, free",
    "async with lease",
    "alloc_nowait, pin, free",
    "alloc_nowait, view kept, free",
    "movable: alloc_nowait, free",
)
TIMES = 1000
WARM = 200
ALLOWED = 1.10
INSIDE = "--inside"
"""Runs what is counted; callgrind does so."""

Counts = dict[str, int]


async def work() -> None:
    """What is counted. Each way has a loop of its own, as in a service."""
    async with aslab.open_allocator(slabs=Heap(), expire=None) as kmem:
        # One allocation in thousands is noted (`holders_sample`), and would count for whichever way met it.
        cache = kmem.create_cache("c", 4096, holders_sample=0)
        movable = kmem.create_cache("d", 4096, holders_sample=0, movable=True)
        await cache.prefill(8)
        await movable.prefill(8)

        async def alloc_nowait(times: int) -> None:
            for _ in range(times):
                cache.alloc_nowait().free()

        async def alloc(times: int) -> None:
            for _ in range(times):
                (await cache.alloc()).free()

        async def view(times: int) -> None:
            for _ in range(times):
                buf = await cache.alloc()
                buf.view  # noqa: B018
                buf.free()

        async def lease(times: int) -> None:
            for _ in range(times):
                async with cache.lease():
                    pass

        async def pin(times: int) -> None:
            for _ in range(times):
                buf = cache.alloc_nowait()
                with buf.pin():
                    pass
                buf.free()

        async def kept(times: int) -> None:
            for _ in range(times):
                buf = cache.alloc_nowait()
                view = buf.view  # noqa: F841
                buf.free()

        async def may_move(times: int) -> None:
            for _ in range(times):
                movable.alloc_nowait().free()

        gc.disable()
        ways = alloc_nowait, alloc, view, lease, pin, kept, may_move
        for way in ways:
            await way(WARM)
        for times in (TIMES, 2 * TIMES):
            os.getloadavg()
            for way in ways:
                await way(times)
                os.getloadavg()


def count(*, pure: bool) -> Counts:
    """Instructions of one pair, by the way it is made.

    :raises subprocess.CalledProcessError: if the program fails
    """
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    env.pop("ASLAB_PURE", None)
    if pure:
        env["ASLAB_PURE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        options = ["--tool=callgrind", "--quiet", "--dump-before=getloadavg", f"--callgrind-out-file={out}"]
        command = ["valgrind", *options, sys.executable, __file__, INSIDE]
        subprocess.run(command, env=env, check=True)
        # The first has what came before the first call, and the one after the ways what came in between.
        dumps = [_sum(Path(f"{out}.{number}")) for number in range(1, 2 * len(WAYS) + 3)]
    once, twice = dumps[1 : len(WAYS) + 1], dumps[len(WAYS) + 2 :]
    return {way: round((more - less) / TIMES) for way, less, more in zip(WAYS, once, twice, strict=True)}


def _sum(dump: Path) -> int:
    (line,) = (line for line in dump.read_text().splitlines() if line.startswith("summary: "))
    return int(line.split()[1])


def over(counts: Counts, bounds: Counts) -> list[str]:
    """The ways that take more than they may."""
    return [way for way, number in counts.items() if way in bounds and number > bounds[way] * ALLOWED]


def build(implementation: str) -> str:
    """What bounds are recorded for: other builds of the same Python take other instructions."""
    return f"{platform.python_version()}, {platform.python_compiler()}, {implementation}"


def save(bounds: dict[str, Counts]) -> None:
    """Write the bounds, with the comment that the file begins with."""
    lines = [f"# Instructions of one pair, by build of Python: {Path(__file__).name} --record writes this file."]
    for name, counts in sorted(bounds.items()):
        lines += ["", f'["{name}"]', *(f'"{way}" = {number}' for way, number in counts.items())]
    BOUNDS.write_text("\n".join([*lines, ""]))


def main(args: list[str] | None = None) -> int:
    """Count, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="make the counts the bounds of this build")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.inside:
        asyncio.run(work())
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: instructions are not counted")
        return 0
    bounds: dict[str, Counts] = tomllib.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    found: dict[str, Counts] = {}
    for implementation in ("pure", "compiled"):
        if implementation == "compiled" and inspect.isfunction(aslab.Buffer.free):
            print("the compiled fast path is not built, or not in use: not counted", file=sys.stderr)
            continue
        try:
            found[build(implementation)] = count(pure=implementation == "pure")
        except subprocess.CalledProcessError as exc:
            print(f"{parser.prog}: {exc}", file=sys.stderr)
            return 1
    if given.record:
        bounds |= found
        save(bounds)
    if given.json:
        print(json.dumps(found, indent=2))
    failed = False
    for name, counts in found.items():
        bound, bad = bounds.get(name, {}), over(counts, bounds.get(name, {}))
        failed |= bool(bad)
        if not given.json:
            print(f"{name}{'' if bound else ': no bounds are recorded for this build'}")
            for way, number in counts.items():
                told = f"of {bound[way]:,}" if way in bound else ""
                print(f"  {way:<30}{number:>8,}  {told}{'  MORE THAN 10 % OVER' if way in bad else ''}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
