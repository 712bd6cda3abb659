"""The commands, and their exit codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, cast

import typer

from ._errors import INTERRUPTED, complain, refusals_told
from ._version import version as version_line

# The base class of all errors about options; typer does not export it, and its place depends on the version.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


def _add_demo(app: typer.Typer) -> None:
    from ._demo._command import demo

    app.command(name="demo")(demo)


def _add_top(app: typer.Typer) -> None:
    from ._top._command import top

    app.command(name="top")(top)


def _add_fault(app: typer.Typer) -> None:
    from ._fault import fault

    # So that "fail -3" is told what is allowed in place of -3.
    app.command(name="fault", context_settings={"ignore_unknown_options": True})(fault)


def _add_lab(app: typer.Typer) -> None:
    from ._lab import app as lab_app

    app.add_typer(lab_app, name="lab", help="Play scenarios of memory that is slow, stuck or refused.")


def _add_bench(app: typer.Typer) -> None:
    from aslab.bench import app as bench_app

    app.add_typer(bench_app, name="bench", help="Measure what things cost on this machine.")


COMMANDS: dict[str, Callable[[typer.Typer], None]] = {
    "demo": _add_demo,
    "top": _add_top,
    "fault": _add_fault,
    "lab": _add_lab,
    "bench": _add_bench,
}
"""What adds each command; all of them together take half a second to import."""


def _app(args: Sequence[str]) -> typer.Typer:
    """The app with the command that comes first in ``args``, or with all."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.callback(invoke_without_command=True)(root)
    for name in args[:1] if args and args[0] in COMMANDS else COMMANDS:
        COMMANDS[name](app)
    return app


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """aslab: demonstrate, simulate and measure an async slab allocator."""
    if version:
        print(version_line())
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(args: Sequence[str]) -> int:
    """Run one command. Returns its exit code: 0 for success, 1 for a failed check, 2 for bad input.

    :raises KeyboardInterrupt: after Ctrl-C
    """
    return refusals_told(_run, args)


def _run(args: Sequence[str]) -> int:
    try:
        code: object = _app(args)(args, prog_name="aslab", standalone_mode=False)
    except _UsageError as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":
            exc.show()
        else:
            complain(" ".join(exc.format_message().split()))
        return 2
    except typer.Abort:  # what a KeyboardInterrupt becomes, or exit code 130, depending on the version of typer
        raise KeyboardInterrupt from None
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
