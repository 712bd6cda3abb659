"""What all charts share: colours, and times, numbers and names as text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

COLOURS = {
    "waiting": "#b8860b",
    "holding": "#3b82c4",
    "emergency": "#d9480f",
    "growing": "#00936b",
    "stuck": "#cc3b7c",
    "failed": "#7f8790",
    "txg sync": "#7f8790",
    "GROWING": "#6f9a1f",
    "DEADLOCKED": "#a35fd0",
    "REAPING": "#a5733a",
    "held": "#3b82c4",
    "free in slabs": "#00936b",
    "free pages": "#8a6fe0",
}
"""By meaning, on every page. Each has a contrast of 3 on both the light and the dark page."""
PALETTE = ("#d9480f", "#a5733a", "#3b82c4", "#b8860b", "#8a6fe0", "#00936b", "#1a94a8", "#cc3b7c")
"""For things without a colour of their own, such as the machines of a story, in turn."""


def other_colour(number: int) -> str:
    """A colour of the palette, which repeats."""
    return PALETTE[number % len(PALETTE)]


def nice(top: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` round numbers from 0 to ``top``, 1, 2 or 5 times a power of ten apart."""
    if top <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(top / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= top * 0.999)
    step = max(step, 1.0) if whole else step
    return [number * step for number in range(math.floor(top / step * 1.000001) + 1)]


def notes(told: Iterable[str]) -> str:
    """Sentences in small print; empty if there are none."""
    words = " ".join(text(one) for one in told)
    return f"<p class=note>{words}</p>" if words else ""


def text(given: str) -> str:
    """Escape text for HTML."""
    return html.escape(given)


def plain(given: str, most: int) -> str:
    """Escape text for HTML, shortened in the middle to at most ``most`` characters."""
    given = "".join(letter if letter.isprintable() else " " for letter in given)
    if len(given) > most:
        given = f"{given[: most // 2]}…{given[len(given) - (most - most // 2 - 1) :]}"
    return html.escape(given)


def lasting(seconds: float) -> str:
    """``1.5 s``, ``20 ms``, ``3.33 µs``."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9995 or (unit == "µs" and seconds):
            amount = seconds / factor
            return f"{amount:,.0f} {unit}" if amount >= 1000 else f"{amount:.3g} {unit}"
    return "0 s"


def counted(value: float) -> str:
    """``8,388,608``, ``812.346``."""
    whole = math.isfinite(value) and value == int(value)
    return f"{int(value):,}" if whole else f"{value:,.6g}"
