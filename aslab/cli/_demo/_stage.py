"""What people see of the acts: two bars while one is played, on a terminal; a line each; a verdict."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from .._prose import console, say
from ._acts import Act
from ._pair import Pair
from ._words import OURS, THEIRS, Told

BAR = 36
"""Characters of the longer bar."""
NAME = 16
"""Characters before it."""
AGAIN = 8
"""How often a second the bars are drawn."""
STYLES = {OURS: "bold green", THEIRS: "bold yellow", "": ""}
NEXT = (
    "Read next: docs/tutorial.md, ten minutes; docs/recipes.md, services to copy from. "
    "See more: aslab lab run deadlock-recovers, aslab demo --help."
)


class Stage:
    """Prints on stdout what the acts find, as wide as the terminal or 80 columns; in colour on a terminal.

    :param show: False to print nothing
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._console = console()

    def open(self) -> None:
        """Print what comes."""
        self._say("aslab at work: the same with aslab and without, measured here and now.", "bold")
        self._say()

    @contextmanager
    def bars(self, act: Act, pair: Pair) -> Iterator[None]:
        """Show both figures until the end of the block, if stderr is a terminal."""
        if not (self._show and sys.stderr.isatty()):
            yield
            return
        began = time.monotonic()
        to = Console(stderr=True, highlight=False, markup=False, emoji=False)
        with Live(
            get_renderable=lambda: _drawn(act, pair, time.monotonic() - began),
            console=to,
            refresh_per_second=AGAIN,
            transient=True,
        ):
            yield

    def tell(self, act: Act, told: Told) -> None:
        """Print the line of an act."""
        if self._show:
            pieces = [(text, STYLES[style]) for text, style in told.words()]
            self._console.print(Text.assemble(f"{act.number}. ", *pieces), soft_wrap=True)

    def end(self, wrong: Sequence[str], well: Sequence[str]) -> None:
        """Print the verdict, and where to go on."""
        self._say()
        if wrong:
            self._say(f"Verdict: NOT well: {'; '.join(wrong)}.", "bold red")
        elif well:
            told = " and ".join(", ".join(well).rsplit(", ", 1))
            self._say(f"Verdict: all is well: {told}.", "bold green")
        self._say(NEXT)

    def _say(self, text: str = "", style: str = "") -> None:
        if self._show:
            say(self._console, text, style)


def _drawn(act: Act, pair: Pair, seconds: float) -> Group:
    head = Text.assemble((f"{act.number}. {act.title}", "bold"), (f"   {seconds:.0f} s  {pair.note}", "dim"))
    most = max(pair.ours.value, pair.theirs.value)
    lines = [head]
    for name, figure, style in zip(act.ways, (pair.ours, pair.theirs), (OURS, THEIRS), strict=True):
        length = round(BAR * figure.value / most) if most else 0
        bar = ("━" * length, STYLES[style])
        lines.append(Text.assemble(f"   {name:<{NAME}}", bar, f" {act.told(figure.value)} {act.unit}"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)
