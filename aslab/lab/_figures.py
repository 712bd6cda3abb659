"""What every plot of the report has, and the one of the waits.

Plots are plain dictionaries, as Plotly takes them, and every name in them is escaped: Plotly reads text
as if it were HTML.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ._bounds import histogram
from ._recording import Recording

Json = dict[str, Any]

COLOURS = {  # after Okabe and Ito: told apart by the colour-blind, and on white as on black
    "waiting": "#e69f00",
    "holding": "#4a9fd8",
    "emergency": "#d55e00",
    "growing": "#009e73",
    "stuck": "#c4609a",
    "failed": "#8a8a8a",
    "txg sync": "#4a9fd8",
    "GROWING": "#009e73",
    "DEADLOCKED": "#c4609a",
    "REAPING": "#b08d57",
    "held": "#4a9fd8",
    "free in slabs": "#009e73",
    "free pages": "#8a7fd0",
    "moment": "#9b6ff0",
}
APART: Json = {"ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)"}
"""Labels that do not touch where two axes meet."""
TOP, BOTTOM = 36, 34
"""Margins in pixels."""


@dataclass(slots=True)
class Figure:
    """A plot, and what must be said about it."""

    data: list[Json] = field(default_factory=list)
    layout: Json = field(default_factory=dict)
    wide: Json = field(default_factory=dict)
    """Of the layout, what a wide screen has, as ``Plotly.relayout`` takes it."""
    narrow: Json = field(default_factory=dict)
    legend: dict[str, str] = field(default_factory=dict)
    """Colours by what they mean."""
    notes: list[str] = field(default_factory=list)
    """What was left out, in sentences."""


def waits(recording: Recording) -> Figure:
    """How many callers waited how long, in bins that grow."""
    edges, counts = histogram(recording.waits)
    powers = [math.log10(edge * 1000) for edge in edges]
    decades = range(math.floor(powers[0] + 1e-9), math.ceil(powers[-1] - 1e-9) + 1) if edges else range(0)
    figure = Figure()
    figure.data = [
        {
            "type": "bar",
            "name": "waits",
            "x": [(low + high) / 2 for low, high in pairwise(powers)],
            "y": counts,
            "width": [0.94 * (high - low) for low, high in pairwise(powers)],
            "hovertext": [
                f"{count:,} waited<br>{lasting(low)} to {lasting(high)}"
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
            ],
            "hoverinfo": "text",
            "marker": {"color": COLOURS["waiting"]},
        }
    ]
    figure.layout = common(300) | {
        "xaxis": {
            "title": {"text": "wait in ms, on a logarithmic scale"},
            "range": [decades[0], decades[-1]] if decades else [0, 1],
            "tickvals": list(decades),
            "ticktext": [f"{10**power:,}" if power >= 0 else f"{10.0**power:g}" for power in decades],
        },
        "yaxis": {"title": {"text": "callers"}, "fixedrange": True, "rangemode": "tozero", "nticks": 6} | APART,
    }
    figure.layout["margin"] |= {"t": 12, "b": 52}
    figure.wide, figure.narrow = {"margin.l": 62}, {"margin.l": 54}
    return figure


def common(height: int) -> Json:
    """What the layouts have in common; the colours of text and lines come with the page."""
    return {
        "height": height,
        "margin": {"t": TOP, "b": BOTTOM, "r": 16, "l": 60},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "zoom",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
    }


def plain(text: str, most: int) -> str:
    """At most so many letters, the middle left out, that Plotly takes for nothing but text."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"
    return html.escape(text, quote=False)


def lasting(seconds: float) -> str:
    """``1.5 s``, ``20 ms``, ``3.33 µs``."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9995 or (unit == "µs" and seconds):
            amount = seconds / factor
            return f"{amount:,.0f} {unit}" if amount >= 1000 else f"{amount:.3g} {unit}"
    return "0 s"
