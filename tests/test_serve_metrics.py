"""A thread that answers scrapes: over one connection, while the loop is blocked, and for the time of a block."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import anyio.lowlevel
import pytest
from anyio import to_thread
from prometheus_client import REGISTRY, CollectorRegistry

from aslab import ConfigError, _unix
from aslab.observe import _http, _serving
from aslab.observe.prometheus import AllocatorCollector, serve_metrics

from .helpers import no_descriptors
from .support import allocator

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(2**20), b""))


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


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
            thread.join(60)  # blocks the loop
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
    assert "aslab metrics" not in names_of_threads()


async def test_a_client_too_many_takes_the_place_of_an_idle_one_and_a_faulty_collector_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "MOST", 1)
    faulty = mock.Mock(collect=mock.Mock(side_effect=[RuntimeError("faulty"), []]))

    def ask_beside_a_silent_client() -> tuple[bytes, bytes]:
        with connect(port) as silent, connect(port) as other:
            other.sendall(REQUEST)
            return other.recv(100), silent.recv(100)

    async with serve_metrics(faulty, 0) as port:
        answer, silent = await to_thread.run_sync(ask_beside_a_silent_client)
        assert (answer[:12], silent) == (b"HTTP/1.1 500", b"")
        assert "could not be collected" in caplog.text
        answer, silent = await to_thread.run_sync(ask_beside_a_silent_client)
        assert (answer[:12], silent) == (b"HTTP/1.1 200", b"")
    with pytest.raises(ConfigError, match="port: 70000 is not allowed"):
        async with serve_metrics(faulty, 70000):
            pass


@pytest.mark.parametrize(
    ("limit", "sent"), [("PATIENCE", b""), ("PATIENCE", b"GET"), ("IDLE", REQUEST)], ids=["silent", "slow", "idle"]
)
async def test_a_client_that_asks_nothing_more_is_closed_in_the_end(
    monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes
) -> None:
    monkeypatch.setattr(_serving, limit, 0.01)
    sent_all = threading.Event()
    accept = _unix.accept

    def accept_then(listener: socket.socket) -> socket.socket:
        sock = accept(listener)
        sent_all.wait(60)  # its time begins when it has sent: what came later would be answered by a reset
        return sock

    monkeypatch.setattr(_unix, "accept", accept_then)
    async with serve_metrics(CollectorRegistry(), 0) as port:
        with connect(port) as sock:
            sock.sendall(sent)
            sent_all.set()
            assert (await to_thread.run_sync(read_all, sock))[:12] == (b"HTTP/1.1 200" if sent == REQUEST else b"")


class Large:
    """Answers of more bytes than the kernel takes."""

    SIZE = 2**25

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None) -> None:
        self.asked = threading.Event()
        self._then = then
        monkeypatch.setattr(_serving, "answer_to", self.answer)

    def answer(self, head: bytes, registry: object) -> _http.Answer:
        self._then()
        self.asked.set()
        return _http.Answer(bytes(self.SIZE), keep=True)


async def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Large(monkeypatch, lambda: monkeypatch.setattr(_serving, "PATIENCE", 0.0))

    def read_late() -> bytes:
        with connect(port) as sock:
            sock.sendall(REQUEST)
            large.asked.wait(60)
            with connect(port) as other:
                other.recv(1)  # that it is accepted is the last of the same turn
            return read_all(sock)

    async with serve_metrics(CollectorRegistry(), 0) as port:
        assert 0 < len(await to_thread.run_sync(read_late)) < Large.SIZE


@pytest.mark.parametrize("reads", [True, False])
async def test_a_block_ends_when_answers_under_way_are_sent_or_their_clients_do_not_read(
    monkeypatch: pytest.MonkeyPatch, *, reads: bool
) -> None:
    monkeypatch.setattr(_serving, "GRACE", 60.0 if reads else 0.01)
    large, got = Large(monkeypatch), list[int]()
    with ExitStack() as stack:
        async with serve_metrics(CollectorRegistry(), 0) as port:
            stack.enter_context(connect(port))  # asks nothing
            sock = stack.enter_context(connect(port))
            rescue = threading.Timer(60, sock.shutdown, [socket.SHUT_RDWR])  # else a fault would be a hang
            stack.callback(rescue.cancel)
            rescue.start()
            sock.sendall(REQUEST)
            await to_thread.run_sync(large.asked.wait, 60)
            reader = threading.Thread(target=lambda: got.append(len(read_all(sock)) if reads else 0))
            reader.start()
        reader.join()
        assert not rescue.finished.is_set()
    assert got == [Large.SIZE if reads else 0]
    assert "aslab metrics" not in names_of_threads()


async def test_a_bug_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = mock.Mock(side_effect=[ZeroDivisionError, _http.Answer(b"well", keep=False)])
    monkeypatch.setattr(_serving, "answer_to", bug)

    def ask() -> bytes:
        with connect(port) as sock:
            sock.sendall(REQUEST)
            return read_all(sock)

    async with serve_metrics(CollectorRegistry(), 0) as port:
        assert [await to_thread.run_sync(ask) for _ in range(2)] == [b"", b"well"]
    assert caplog.messages == ["a scrape could not be answered"]


async def test_with_no_descriptor_left_it_warns_once_an_episode_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "AGAIN", 0.001)
    accept = mock.Mock(wraps=_unix.accept)
    monkeypatch.setattr(_unix, "accept", accept)

    async def refused(times: int) -> None:
        until = accept.call_count + times
        while accept.call_count < until:
            await anyio.lowlevel.checkpoint()

    await to_thread.run_sync(int)  # there is a thread to leave by
    with socket.socket() as one, socket.socket() as two, ExitStack() as short:
        async with serve_metrics(CollectorRegistry(), 0) as port:
            with no_descriptors():
                one.connect(("127.0.0.1", port))
                await refused(4)
            one.sendall(REQUEST)
            assert await to_thread.run_sync(one.recv, 12) == b"HTTP/1.1 200"
            assert len(caplog.messages) == 1
            short.enter_context(no_descriptors())
            two.connect(("127.0.0.1", port))
            await refused(2)
            assert len(caplog.messages) == 2
    assert "aslab metrics" not in names_of_threads()


async def test_with_no_thread_to_be_had_it_is_not_begun_but_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    none = mock.Mock(side_effect=RuntimeError("can't start new thread"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(RuntimeError, match="new thread"):
            async with serve_metrics(CollectorRegistry(), port):
                pass
    async with serve_metrics(CollectorRegistry(), port):
        monkeypatch.setattr(to_thread, "run_sync", none)
    assert "aslab metrics" not in names_of_threads()


async def test_a_child_made_by_fork_keeps_neither_port_nor_connection() -> None:
    read, write = os.pipe()
    begins, begun = os.pipe()
    async with serve_metrics(CollectorRegistry(), 0) as port:
        sock = connect(port)
        sock.sendall(REQUEST)
        await to_thread.run_sync(sock.recv, 2**16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; this child only reads
            child = os.fork()
        if child == 0:
            try:
                os.close(write)
                os.write(begun, b"!")
                os.read(read, 1)
            finally:
                os._exit(0)
        await to_thread.run_sync(os.read, begins, 1)  # what closes its copies has run
    try:
        assert await to_thread.run_sync(sock.recv, 1) == b""
        async with serve_metrics(CollectorRegistry(), port):
            pass
    finally:
        sock.close()
        for end in (write, read, begins, begun):
            os.close(end)
        await to_thread.run_sync(os.waitpid, child, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="has no IPv6")
async def test_an_address_of_ipv6_is_one_of_this_machine() -> None:
    async with serve_metrics(CollectorRegistry(), 0, host="::1") as port:
        socket.create_connection(("::1", port)).close()


class TestRequests:
    """Each gets one answer, and the connection is kept where it can be."""

    @pytest.mark.parametrize(
        ("request_", "status", "kept"),
        [
            (b"HEAD / HTTP/1.1", 200, True),
            (b"GET / HTTP/1.1\r\nConnection: Close", 200, False),
            (b"GET / HTTP/1.0", 200, False),
            (b"GET / HTTP/1.1\r\nContent-Length: 3", 200, False),
            (b"POST / HTTP/1.1\r\nContent-Length: 0", 405, False),
            (b"GET / HTTP/2.0", 400, False),
            (b"GET / HTTP/1.1\r\nno colon", 400, False),
            (b"\xff\x00", 400, False),
            (b"", 400, False),
        ],
    )
    def test_have_a_status(self, request_: bytes, status: int, kept: bool) -> None:
        answer = _http.answer_to(request_, REGISTRY)
        head, _, body = answer.data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert answer.keep is kept
        assert (b"Connection: close" in head) is not kept
        assert (body == b"") is request_.startswith(b"HEAD")
        assert b"Content-Length: 0" not in head

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            (b"application/openmetrics-text;version=1.0.0", b"application/openmetrics-text"),
            (b"application/openmetrics-text; version=abc", b"text/plain"),
            (b"\xff", b"text/plain"),
        ],
    )
    def test_get_openmetrics_where_that_is_asked_for_in_a_way_that_makes_sense(
        self, accept: bytes, kind: bytes
    ) -> None:
        answer = _http.answer_to(b"GET / HTTP/1.1\r\nAccept: " + accept, REGISTRY)
        assert answer.data.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind)

    @pytest.mark.anyio
    async def test_come_one_after_the_other_in_pieces_or_are_too_large(self) -> None:
        def ask() -> bytes:
            with connect(port) as sock:
                sock.sendall(b"\r\n" + REQUEST + b"\r\n" + REQUEST + REQUEST[:9])
                sock.sendall(REQUEST[9:] + b"G" * (_serving.LONGEST + 1))
                return read_all(sock)

        async with serve_metrics(CollectorRegistry(), 0) as port:
            answer = await to_thread.run_sync(ask)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"200", b"431"]
