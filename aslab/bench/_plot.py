"""The figures of a benchmark as a picture: bars, with lines from quartile to quartile."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..cli._errors import BadInput, why
from ._measured import OURS, Row, spread

EXTRA = "--plot needs the extra 'plot': run pip install '.[plot]' in a clone of aslab"
COLOURS = {True: "#2a6f97", False: "#a9b4bd"}
"""Of bars: of aslab's, and of others'."""
PLAIN = {"svg.fonttype": "none", "svg.hashsalt": "aslab"}
"""Text is text, which is smaller and can be read aloud, and the same rows give the same picture."""


def check(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is measured.

    :raises BadInput: without matplotlib, with the extra that installs it; for a kind of file that it does not
        know, and for a folder that is not there
    """
    try:
        figure: Any = importlib.import_module("matplotlib.figure").Figure()
    except ModuleNotFoundError:
        raise BadInput(EXTRA) from None
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise BadInput(f"--plot: {str(path)!r}: allowed are names that end with .svg, .png or .pdf")
    if not path.parent.is_dir():
        raise BadInput(f"--plot: {str(path)!r}: its folder is not there")


def plot(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a picture with one chart for each case, loop and quantity; its kind is that of the file's name.

    :raises BadInput: if the file cannot be written
    """
    charts = [list(group) for _, group in groupby(rows, key=_chart)]
    heights = [len(chart) + 1.5 for chart in charts]
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 0.3 * sum(heights) + 0.5))
    figure.suptitle(title)
    axes = figure.subplots(len(charts), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, chart in zip(axes, charts, strict=True):
        _draw(axis, chart)
    figure.set_layout_engine("constrained")
    try:
        with importlib.import_module("matplotlib").rc_context(PLAIN):
            figure.savefig(path)
    except OSError as exc:
        raise BadInput(f"--plot: cannot write {str(path)!r}: {why(exc)}") from None


def _chart(row: Row) -> tuple[object, ...]:
    return row.key.loop, row.key.case, row.key.quantity


def _draw(axis: Any, chart: Sequence[Row]) -> None:
    key = chart[0].key
    spreads = [spread(row.rounds) for row in chart]
    sides = [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
    colours = [COLOURS[row.key.contender.startswith(OURS)] for row in chart]
    axis.barh([row.key.contender for row in chart], [one.median for one in spreads], xerr=sides, color=colours)
    axis.invert_yaxis()
    better = " (more is better)" if key.quantity.more_is_better else ""
    axis.set_title("; ".join(filter(None, (key.case, key.loop, f"{key.quantity}{better}"))), fontsize="small")
    axis.tick_params(labelsize="small")
