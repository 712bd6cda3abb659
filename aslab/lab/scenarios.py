"""Scenario files, for programs and tests: load one, play it, check the result.

    played = play(load(Path("my.toml")), seed=3, loop="trio")
    assert played.result.passed, played.result.broken

Needs the extra ``lab``: pydantic for the files.
"""

from ._scenario._builtin import builtin as builtin
from ._scenario._load import check as check
from ._scenario._load import load as load
from ._scenario._metrics import METRICS as METRICS
from ._scenario._metrics import Metric as Metric
from ._scenario._play import Played as Played
from ._scenario._play import play as play
from ._scenario._recording import Moment as Moment
from ._scenario._recording import Recording as Recording
from ._scenario._recording import Span as Span
from ._scenario._result import Result as Result
from ._scenario._result import Verdict as Verdict
from ._scenario._schema import Scenario as Scenario

__all__ = [
    "METRICS",
    "Metric",
    "Moment",
    "Played",
    "Recording",
    "Result",
    "Scenario",
    "Span",
    "Verdict",
    "builtin",
    "check",
    "load",
    "play",
]
