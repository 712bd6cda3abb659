"""``aslab fault``: turn a fault on or off in a running service, and see what is on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..faults import FaultKind
from ._errors import BadInput, printable
from ._prose import console, say
from ._top._source import VARIABLE, ask

LONGEST = 150
"""Characters of a command, all together."""


def fault(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="status; heal; or growth or emergency, and one of: stuck [DURATION], slow DELAY [DURATION], "
            "fail TIMES [DURATION], heal. Times are such as 3s, 200ms or 1m. Without a duration a fault stays "
            "until it is healed.",
        ),
    ],
    at: Annotated[
        Path | None,
        typer.Option(metavar="ADDRESS", envvar=VARIABLE, help="The Unix socket of kmem.serve_stats(path)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Turn faults on and off in a running service that was opened with faults=True, and show which are on."""
    if at is None:
        raise BadInput(f"--at: it must be the socket of the service's kmem.serve_stats(path); or set {VARIABLE}")
    request = " ".join(["fault", *words])
    if len(request) > LONGEST or not request.isprintable():
        raise BadInput(f"fault: {request[6:40]!r}...: it must be a command such as growth {FaultKind.STUCK} 3s")
    answer = ask(at, request)
    if "error" in answer:
        raise BadInput(answer["error"])
    if "faults" not in answer:
        raise BadInput(f"{printable(str(at))}: the service took no command, and nothing was changed; try again")
    if as_json:
        print(json.dumps(answer, indent=2))
        return 0
    out = console()
    if answer["done"]:
        say(out, answer["done"])
    else:
        for one in answer["faults"] or [{"text": "no fault is on"}]:
            say(out, one["text"])
    return 0
