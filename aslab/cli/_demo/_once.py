"""One run of the service, from the walk to the last line."""

from __future__ import annotations

import enum

from anyio import to_thread

from .._errors import complain
from .._loops import Loop, run_on
from ._files import Found, Where, check_paths, name_unreadable
from ._output import run_as_json, write_json, write_sums
from ._run import Run, perform, wrong_with
from ._service import Settings
from ._words import and_broken


class Form(enum.Enum):
    """What is printed."""

    PROSE = enum.auto()
    TABLE = enum.auto()
    """Prose, and the text of /proc/spl/kmem/slab."""
    JSON = enum.auto()
    SUMS = enum.auto()
    """Lines for ``sha256sum -c``."""


def do_one_run(run: Run, settings: Settings, where: Where, form: Form) -> int:
    """Hash the files once. Returns the exit code.

    :raises ConfigError: if a fault is not valid, or a buffer does not fit the limit
    """
    run.slabs()  # or a fault that is not valid is told after a long walk
    found: Found = run_on(run.loop, _find, where)
    prose = form in (Form.PROSE, Form.TABLE)
    if prose and not found.files:
        name_unreadable(found.unreadable)
        print(f"There are no files to read{and_broken(found.broken)}, so nothing was run.")
        return 1 if found.unreadable else 0
    result = perform(run, settings, found)
    name_unreadable(result.outcome.unreadable)
    for sentence in wrong_with(result):
        complain(sentence)
    if prose:
        from ._report import Report  # imports rich

        Report(settings, found, table=form is Form.TABLE).show(result)
    elif form is Form.SUMS:
        write_sums(result.outcome.sums)
    else:
        write_json(run_as_json(result))
    return 1 if wrong_with(result) or result.outcome.unreadable else 0


def print_sums(paths: list[str]) -> int:
    """What ``aslab demo --sums PATH ...`` does. Returns the exit code.

    :raises BadInput: if a path cannot be read
    """
    check_paths(paths)
    return do_one_run(Run(Loop.ASYNCIO), Settings.parse(), Where(paths, (), given=True), Form.SUMS)


async def _find(where: Where) -> Found:
    return await to_thread.run_sync(where.find, abandon_on_cancel=True)
