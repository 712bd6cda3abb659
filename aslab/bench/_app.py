"""The command ``aslab bench``, to which each module here adds a command, and the options that all of them have."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cli._errors import complain
from ..cli._progress import bar
from . import _plot, _record, _table
from ._measured import Bench, interleave

app: typer.Typer = typer.Typer(
    help="Measure what things cost on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_COMMON: dict[str, tuple[Any, Any]] = {
    "rounds": (Annotated[int, typer.Option(help="Interleaved rounds.", min=1)], 1),
    "quick": (Annotated[bool, typer.Option("--quick", help="Measure less, within seconds.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print one JSON object.")], False),
    "plot": (Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the figures.")], None),
    "record": (Annotated[Path | None, typer.Option(metavar="FILE", help="Append to this history.")], None),
}
"""Type and default of each option that all have."""


def names() -> list[str]:
    """All benchmarks, in the order of their modules."""
    return [each.name for each in app.registered_commands if each.name]


def command(
    name: str, *, rounds: int, quick: Mapping[str, object]
) -> Callable[[Callable[..., Bench]], Callable[..., Bench]]:
    """Make a command of a function that returns what is to be measured.

    Its parameters become options, besides those that all have: ``--rounds``, ``--quick``, ``--json``, ``--plot``
    and ``--record``.

    :param rounds: the default
    :param quick: options that ``--quick`` sets, unless they are given
    """

    def register(make: Callable[..., Bench]) -> Callable[..., Bench]:
        def run(**given: Any) -> None:
            context: typer.Context = given.pop("context")
            common = {option: given.pop(option) for option in _COMMON}
            if common["quick"]:
                for option, value in quick.items():
                    source = context.get_parameter_source(option)
                    if source is None or source.name == "DEFAULT":
                        (common if option in common else given)[option] = value
            _perform(name, lambda: make(**given), **common)

        own = list(inspect.signature(make, eval_str=True).parameters.values())
        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        for option, (annotation, default) in _COMMON.items():
            value = rounds if option == "rounds" else default
            parameters.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)
            )
        run.__doc__ = make.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name)(run)
        return make

    return register


def _perform(
    name: str,
    make: Callable[[], Bench],
    *,
    rounds: int,
    quick: bool,
    as_json: bool,
    plot: Path | None,
    record: Path | None,
) -> None:
    if plot is not None:
        _plot.check(plot)
    history = None if record is None else _record.History(record)
    bench = make()
    name = bench.name or name
    if bench.foretell is not None:
        complain(bench.foretell(rounds))
    total = sum(min(rounds, turn.rounds or rounds) for turn in bench.turns)
    with bench.around, bar() as shown:
        task = shown.add_task(f"aslab bench {name}", total=total)
        done = iter(range(total))
        rows = interleave(
            bench.turns,
            rounds,
            lambda turn: shown.update(task, description=turn.case or turn.contender, completed=next(done)),
        )
    if as_json:
        json.dump(_record.as_json(name, rows), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _table.show(bench.title, rows, bench.note)
    if plot is not None:
        _plot.plot(plot, bench.title, rows)
    if history is not None:
        history.append(name, rows)
