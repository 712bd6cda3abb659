"""How long a scrape of the figures takes while growth is stuck and the service is busy.

The service is a process of its own (`_scraped`), and this one scrapes it as Prometheus does: over one
connection, if the server keeps that. Of each scrape the rendering is processor time of the service. The rest is
waiting: for the interpreter, which another thread has to hand over; for a processor; and for the network.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from ..cli._errors import BadInput
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SERVERS = {
    "aslab: serve_metrics": "ours",
    "aslab: the same, switch interval 0.5 ms": "ours-interval",
    "prometheus_client's server": "thread",
    "prometheus_client's, switch interval 0.5 ms": "thread-interval",
    "ASGI app on the loop": "loop",
}
RIVAL = "prometheus_client's server"
PAUSE = 0.01
"""Seconds between two scrapes."""
LONGEST, LEAST = 10.0, 3
"""Seconds that the scrapes of a turn may take, once there were so many of them."""
MEDIAN, SLOW = Quantity("median", "ms"), Quantity("99th percentile", "ms")
RENDERING, WAITING = Quantity("rendering", "ms"), Quantity("waiting", "ms")


@command("scrape", rounds=3, quick={"rounds": 1, "scrapes": 20})
def scrape(
    scrapes: Annotated[int, typer.Option(help="Scrapes a turn, fewer if they take very long.", min=10)] = 100,
    busy: Annotated[
        list[int] | None,
        typer.Option(help="Of the loop, percent; may be repeated. By default 0, 50 and 100.", min=0, max=100),
    ] = None,
) -> Bench:
    """A scrape of /metrics while growth is stuck, by how busy the service is. Takes a minute."""
    for name, extra in (("prometheus_client", "prometheus"), ("uvicorn", "test")):
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"bench scrape needs {name}, which is in the extra {extra!r}")
    turns = [
        Turn(f"loop {percent} % busy", name, partial(_measure, server, percent / 100, scrapes), against=RIVAL)
        for percent in busy or (0, 50, 100)
        for name, server in SERVERS.items()
    ]
    note = (
        "Growth of 4 caches is stuck, and 40 tasks use emergency objects. Rendering: processor time. Waiting: "
        "what the median is longer."
    )
    return Bench("a scrape while growth is stuck", turns, note)


def _measure(server: str, load: float, scrapes: int) -> Values:
    command_line = [sys.executable, "-m", "aslab.bench._scraped", server, f"{load}"]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
            _scrape(client)  # what is imported by the first is not measured
            took: list[float] = []
            while len(took) < scrapes and (sum(took) < LONGEST or len(took) < LEAST):
                time.sleep(PAUSE)
                took.append(_scrape(client))
        process.stdin.close()
        rendering = statistics.median(json.loads(process.stdout.readline())[1:])
    median = statistics.median(took)
    slow = statistics.quantiles(took, n=100, method="inclusive")[-1]
    return {
        MEDIAN: median * 1e3,
        SLOW: slow * 1e3,
        RENDERING: rendering * 1e3,
        WAITING: (median - rendering) * 1e3,
    }


def _scrape(client: http.client.HTTPConnection) -> float:
    """The seconds that one took."""
    begin = time.perf_counter()
    client.request("GET", "/metrics")
    answer = client.getresponse().read()
    took = time.perf_counter() - begin
    assert b"aslab_growth_late{" in answer
    return took
