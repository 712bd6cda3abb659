"""The command ``aslab``.

    _app       the commands, and their exit codes
    _demo      ``aslab demo``
    _lab       ``aslab lab``
    _top       ``aslab top``
    _fault     ``aslab fault``
    _errors    one line for every error
    _loops     event loops
    _prose     text and tables
    _progress  progress bars
    _version   what ``aslab --version`` says

``aslab bench`` is a package of its own.

Nothing here is imported until `main` is called, because typer and rich come with an extra.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ._errors import EXTRA, INTERRUPTED, complain, refusals_told

NEVER_AWAITED = "coroutine .* was never awaited"
PASSED = r"(trio|asyncio|anyio|typer|click|aslab)\."
"""The modules that Ctrl-C passes on its way up, in any of which such a coroutine may go."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line, ``sys.argv`` by default, and exit with its code."""
    _give_closed_streams_somewhere_to_go()
    # Ctrl-C can strike between the creation of a coroutine and of its task; some are found before we know of it.
    warnings.filterwarnings("ignore", NEVER_AWAITED, RuntimeWarning, PASSED)
    ended_by: list[signal.Signals] = []
    try:
        with _interrupts_come_again(), _signals_end_as_ctrl_c_does(ended_by):
            code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough, as head has
        _forget_output()
        code = 1
    except OSError as exc:
        _forget_output()
        complain(f"cannot write the output: {exc.strerror or exc}")
        code = 1
    except KeyboardInterrupt:
        code = _interrupted(ended_by)
    raise SystemExit(code)


def _run(args: Sequence[str] | None) -> int:
    given = sys.argv[1:] if args is None else args
    logging.getLogger("aslab").addHandler(logging.NullHandler())  # what is to be told, commands tell
    try:
        if list(given) == ["--version"]:
            from ._version import version

            print(version())
            return 0
        if paths := _to_sum(given):
            from ._demo._once import print_sums

            return refusals_told(print_sums, paths)
        from ._app import run

        return run(given)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        complain(f"the command line {EXTRA}")
        return 2


def _to_sum(args: Sequence[str]) -> list[str]:
    """The paths of ``demo --sums PATH ...``, if there is no other option.

    That is compared with programs that start in no time. To import typer, and all that it imports, takes longer
    than all else until the first file is read.
    """
    options = [one for one in args if one.startswith("-")]
    return [one for one in args[1:] if one != "--sums"] if options == ["--sums"] and args[0] == "demo" else []


@contextmanager
def _interrupts_come_again() -> Iterator[None]:
    """Keep a Ctrl-C that is raised in a finaliser, where Python only prints and discards exceptions."""
    before, caller = sys.unraisablehook, threading.get_ident()

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Right away it would be raised in here, and discarded again.
            again = threading.Timer(0.05, signal.pthread_kill, (caller, signal.SIGINT))
            again.daemon = True
            again.start()
        elif not _of_half_a_loop(ignored):
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _of_half_a_loop(ignored: sys.UnraisableHookArgs) -> bool:
    """Whether the finaliser of an event loop failed since Ctrl-C came while that was being made."""
    name = getattr(ignored.object, "__qualname__", "")
    return ignored.exc_type is AttributeError and name == "BaseEventLoop.__del__"


@contextmanager
def _signals_end_as_ctrl_c_does(ended_by: list[signal.Signals]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command in order, with all that it has begun; the second one ends it at once.

    Not where they, or Ctrl-C, are ignored or have a handler of the caller's.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        ended_by.append(signal.Signals(number))
        signal.raise_signal(signal.SIGINT)

    ours = []
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _in_main_thread():
        ours = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupted(ended_by: Sequence[signal.Signals]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python exits, another Ctrl-C ends it at once
    warnings.filterwarnings("ignore", NEVER_AWAITED, RuntimeWarning)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # which complains of a task that was just being made
    before = sys.unraisablehook  # for what the interrupted functions had, and which goes after this
    sys.unraisablehook = lambda ignored: None if _of_half_a_loop(ignored) else before(ignored)
    try:
        sys.stdout.flush()
    except OSError:  # Ctrl-C has also ended the reader
        _forget_output()
    complain(f"ended by {ended_by[0].name}" if ended_by else "interrupted")
    return 128 + ended_by[0] if ended_by else INTERRUPTED


def _give_closed_streams_somewhere_to_go() -> None:
    """Replace closed streams: after ``aslab >&-``, Python has None for stdout."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _forget_output() -> None:
    """Discard what is still buffered for stdout; otherwise Python complains when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
