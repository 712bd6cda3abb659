"""One run of the service, from the walk to the last line."""

from __future__ import annotations

import enum
from collections import ChainMap

from .._errors import complain
from .._loops import Loop
from ._files import Found, Where, check_paths, name_unreadable
from ._output import run_as_json, write_json, write_sums
from ._processes import Lost
from ._run import Run, perform, perform_in, processes, wrong_with
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
    found = where.find()
    prose = form in (Form.PROSE, Form.TABLE)
    if prose and not found.files:
        name_unreadable(found.unreadable)
        print(f"There are no files to read{and_broken(found.broken)}, so nothing was run.")
        return 1 if found.unreadable else 0
    if form is Form.SUMS:
        return _print_sums(run, settings, found)
    result = perform(run, settings, found.files)
    result.outcome.unreadable[:0] = found.unreadable
    name_unreadable(result.outcome.unreadable)
    for sentence in wrong_with(result):
        complain(sentence)
    if prose:
        from ._report import Report  # imports rich

        Report(settings, found, table=form is Form.TABLE).show(result)
    else:
        write_json(run_as_json(result))
    return 1 if wrong_with(result) or result.outcome.unreadable else 0


def print_sums(paths: list[str]) -> int:
    """What ``aslab demo --sums PATH ...`` does. Returns the exit code.

    :raises BadInput: if a path cannot be read
    """
    check_paths(paths)
    return do_one_run(Run(Loop.ASYNCIO), Settings.parse(), Where(paths, (), given=True), Form.SUMS)


def _print_sums(run: Run, settings: Settings, found: Found) -> int:
    number = processes(run, settings, found.files)
    try:
        results = perform_in(number, run, settings, found.files)
    except Lost as exc:
        complain(str(exc))
        return 1
    outcomes = [result.outcome for result in results]
    unreadable = [*found.unreadable, *(one for outcome in outcomes for one in outcome.unreadable)]
    wrong = dict.fromkeys(sentence for result in results for sentence in wrong_with(result))
    name_unreadable(unreadable)
    for sentence in wrong:
        complain(sentence)
    write_sums(dict(ChainMap(*(outcome.sums for outcome in outcomes))))
    return 1 if wrong or unreadable else 0
