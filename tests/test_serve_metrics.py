"""A thread that answers scrapes: over one connection, while the loop is blocked, and for the time of a block."""

from __future__ import annotations

import http.client
import socket
import threading
from unittest import mock

import anyio.lowlevel
import pytest
from anyio import to_thread
from prometheus_client import CollectorRegistry

from aslab import ConfigError
from aslab.observe import _serving
from aslab.observe.prometheus import AllocatorCollector, serve_metrics

from .support import allocator

pytestmark = pytest.mark.anyio


async def test_a_connection_is_kept_and_answered_while_the_loop_is_blocked() -> None:
    registry, answers = CollectorRegistry(), list[tuple[bytes, str | None]]()

    def scrape_twice(client: http.client.HTTPConnection) -> None:
        used = set()
        for _ in range(2):
            client.request("GET", "/metrics")
            used.add(client.sock)
            answer = client.getresponse()
            answers.append((answer.read(), answer.getheader("content-type")))
        assert len(used) == 1

    async with allocator() as kmem:
        registry.register(AllocatorCollector(kmem))
        async with serve_metrics(registry, 0) as port:
            client = http.client.HTTPConnection("127.0.0.1", port)
            thread = threading.Thread(target=scrape_twice, args=(client,))
            thread.start()
            thread.join(10)  # blocks the loop
            with pytest.raises(OSError, match="in use"):
                async with serve_metrics(registry, port):
                    pass
        assert client.sock is not None
        assert client.sock.recv(1) == b""  # the block has ended
        client.close()
    assert len(answers) == 2
    for text, kind in answers:
        assert b"aslab_health" in text
        assert kind is not None
        assert kind.startswith("text/plain")
    assert not {thread.name for thread in threading.enumerate()} & {"aslab metrics", "aslab scrape"}


async def test_a_client_too_many_and_a_collector_that_fails_keep_nobody_from_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "MOST", 1)
    faulty = mock.Mock(collect=mock.Mock(side_effect=[RuntimeError("faulty"), []]))
    request = b"GET / HTTP/1.1\r\n\r\n"

    def ask(*, first: bool) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            two = b"-"
            if first:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as other:
                    two = other.recv(100)  # closed at once
            one.sendall(request)
            return one.recv(100), two

    async with serve_metrics(faulty, 0) as port:
        answer, other = await to_thread.run_sync(lambda: ask(first=True))
        assert (answer[:12], other) == (b"HTTP/1.1 500", b"")
        assert "could not be collected" in caplog.text
        while any(thread.name == "aslab scrape" for thread in threading.enumerate()):
            await anyio.lowlevel.checkpoint()  # it is about to make room
        answer, _ = await to_thread.run_sync(lambda: ask(first=False))
        assert answer[:12] == b"HTTP/1.1 200"
    with pytest.raises(ConfigError, match="port: 70000 is not allowed"):
        async with serve_metrics(faulty, 70000):
            pass
