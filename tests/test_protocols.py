"""BufferedReceiver on real sockets, with asyncio and uvloop: whole buffers, pauses, ends of every kind."""

from __future__ import annotations

import asyncio
import ctypes
import random
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

import aslab
from aslab import ConfigError
from aslab.protocols import BufferedReceiver

from .support import allocator

SIZE = 8192
SIZES = [0, 1, 1023, 1024, 1025, SIZE - 1, SIZE, SIZE + 1, 20 * SIZE, 3 * SIZE + 777]
content = random.Random(5).randbytes
Cache = aslab.Cache[memoryview]
Test = Callable[[Cache], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a test with a cache of so many buffers."""

    def run(test: Test, buffers: int = 1, *, debug: str = "") -> None:
        async def main() -> None:
            async with allocator(limit=buffers * SIZE * (2 if debug else 1), debug=debug) as kmem:
                options = {"max_objects": buffers, "objects_per_slab": 1, "max_emergency": 0}
                cache: Cache = kmem.create_cache("c", SIZE, **options)  # type: ignore[call-overload]
                async with asyncio.timeout(60):
                    await test(cache)
                    while cache.stats().obj_held:
                        await asyncio.sleep(0.001)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


async def connected(make: Callable[[], BufferedReceiver[memoryview]]) -> tuple[BufferedReceiver[memoryview], Any]:
    """The receiver of a connection, and the socket of its peer."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, receiver = await asyncio.get_running_loop().create_connection(make, sock=ours)
    return receiver, theirs


async def send(peer: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(peer, data)


async def take_all(receiver: BufferedReceiver[memoryview]) -> list[bytes]:
    parts = []
    async for buf, n in receiver:
        parts.append(bytes(buf.view[:n]))
        buf.free()
    return parts


async def until_paused(receiver: BufferedReceiver[memoryview]) -> None:
    while receiver.transport.is_reading():
        await asyncio.sleep(0.001)


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + SIZE] for at in range(0, len(data), SIZE)]


def reset(peer: socket.socket) -> None:
    """Close so that the other end gets ECONNRESET."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("buffers", [1, 3])
def test_a_connection_comes_in_whole_buffers_and_needs_only_one(
    size: int, buffers: int, run: Callable[..., None]
) -> None:
    data = content(size)

    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache))
        with peer:
            sending = asyncio.create_task(send(peer, data))
            sending.add_done_callback(lambda _: peer.shutdown(socket.SHUT_WR))
            assert await take_all(receiver) == pieces(data)
            receiver.transport.write(b"got it")  # it is open still
            assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"got it"
            await receiver.aclose()
            await receiver.wait_closed()

    run(test, buffers)


def test_buffers_may_be_freed_as_they_are_delivered(run: Callable[..., None]) -> None:
    data, parts = content(20 * SIZE + 5), []

    def deliver(buf: aslab.Buffer[memoryview], n: int) -> None:
        parts.append(bytes(buf.view[:n]))
        buf.free()  # uvloop would still export it inside of buffer_updated

    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache, deliver))
        with peer:
            await send(peer, data)
        while sum(map(len, parts)) < len(data):
            await asyncio.sleep(0.001)
        assert parts == pieces(data)
        await receiver.aclose()

    run(test, 2)


def test_freeing_inside_of_buffer_updated_is_what_uvloop_refuses() -> None:
    """Why buffers are handed over after the callback."""
    refused = []

    class Naive(asyncio.BufferedProtocol):
        def __init__(self, buf: aslab.Buffer[memoryview]) -> None:
            self.buf = buf

        def get_buffer(self, sizehint: int) -> memoryview:
            return self.buf.view

        def buffer_updated(self, nbytes: int) -> None:
            try:
                self.buf.free()
            except BufferError as exc:
                refused.append(str(exc))

    async def main() -> None:
        async with allocator() as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
            ours, theirs = socket.socketpair()
            with theirs:
                transport, _ = await asyncio.get_running_loop().create_connection(lambda: Naive(buf), sock=ours)
                theirs.send(b"x")
                while not refused:
                    await asyncio.sleep(0.001)
                transport.abort()
                await asyncio.sleep(0)
            buf.free()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert refused


def test_reading_pauses_without_a_buffer_and_goes_on_with_one(run: Callable[..., None]) -> None:
    data = content(4 * 2**20)

    async def test(cache: Cache) -> None:
        held = await cache.alloc()
        receiver, peer = await connected(lambda: BufferedReceiver(cache))
        with peer:
            sending = asyncio.create_task(send(peer, data))
            sending.add_done_callback(lambda _: peer.shutdown(socket.SHUT_WR))
            await until_paused(receiver)
            await asyncio.sleep(0.05)
            assert not receiver.transport.is_reading()
            assert not sending.done()  # the bytes wait in the sockets
            held.free()
            assert await take_all(receiver) == pieces(data)
        await receiver.aclose()

    run(test)


def test_reading_pauses_while_the_iterator_has_enough(run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache, ahead=2))
        with peer:
            await send(peer, content(4 * SIZE))
            peer.shutdown(socket.SHUT_WR)
            await until_paused(receiver)
            await asyncio.sleep(0.05)
            assert not receiver.transport.is_reading()
            assert cache.stats().obj_held <= 3
            assert [len(part) for part in await take_all(receiver)] == [SIZE] * 4
        await receiver.aclose()

    run(test, 8)


def test_a_part_of_a_buffer_is_handed_over_where_that_is_enough(run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache, at_least=1))
        with peer:
            for word in (b"one", b"two"):
                await send(peer, word)
                buf, n = await anext(receiver)
                assert bytes(buf.view[:n]) == word
                buf.free()
        assert await take_all(receiver) == []
        await receiver.aclose()

    run(test)


def test_an_idle_connection_holds_no_buffer(run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache))
        with peer:
            await asyncio.sleep(0.01)
            assert cache.stats().obj_held == 0
            await send(peer, b"x")
            while not cache.stats().obj_held:
                await asyncio.sleep(0.001)
            await receiver.aclose()  # and what is not full is dropped
        assert await take_all(receiver) == []

    run(test)


@pytest.mark.parametrize("damaged", [False, True])
def test_aclose_frees_what_nobody_took(damaged: bool, run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache))
        with peer:
            await send(peer, content(3 * SIZE))
            while len(receiver._ready) < 3:
                await asyncio.sleep(0.001)
            for buf, _ in receiver._ready if damaged else ():
                ctypes.memset(buf.address + SIZE, 1, 1)
            await receiver.aclose()

    run(test, 3, debug="Z" if damaged else "")


@pytest.mark.parametrize("waiting", [False, True], ids=["with a buffer", "waiting for one"])
def test_a_connection_that_breaks_raises_what_broke_it(waiting: bool, run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        held = await cache.alloc()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            loop = asyncio.get_running_loop()
            _, receiver = await loop.create_connection(lambda: BufferedReceiver(cache), *listener.getsockname())
            peer, _ = listener.accept()
        if not waiting:
            held.free()
        peer.send(b"half a buffer")
        await asyncio.sleep(0.02)
        if waiting:
            receiver.transport.write(b"x")
        reset(peer)
        if waiting:  # nobody reads, so nobody notices before a write
            while not receiver.transport.is_closing():
                await asyncio.sleep(0.001)
                receiver.transport.write(b"x")
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            await take_all(receiver)
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            await receiver.wait_closed()
        if waiting:
            held.free()

    run(test)


def test_a_cache_that_is_closed_ends_the_connection(run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        held = await cache.alloc()
        waiting, one = await connected(lambda: BufferedReceiver(cache))
        later, two = await connected(lambda: BufferedReceiver(cache))
        with one, two:
            await send(one, b"x")
            while not cache.stats().waiters:
                await asyncio.sleep(0.001)
            with pytest.warns(ResourceWarning, match="1 buffers still held"):
                await cache.aclose()
            await send(two, b"x")
            for receiver in (waiting, later):
                with pytest.raises(aslab.CacheClosedError):
                    await take_all(receiver)
        held.free()

    run(test)


def test_what_deliver_raises_goes_to_the_loop(run: Callable[..., None]) -> None:
    told = []

    def deliver(buf: aslab.Buffer[memoryview], n: int) -> None:
        buf.free()
        raise ZeroDivisionError

    async def test(cache: Cache) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        receiver, peer = await connected(lambda: BufferedReceiver(cache, deliver, at_least=1))
        with peer:
            for number in range(2):
                await send(peer, b"x")
                while len(told) == number:
                    await asyncio.sleep(0.001)
        await receiver.aclose()

    run(test)
    assert [type(exc) for exc in told] == [ZeroDivisionError, ZeroDivisionError]


def test_many_connections_share_few_buffers(run: Callable[..., None]) -> None:
    data = content(5 * SIZE + 1)

    async def one(cache: Cache) -> None:
        receiver, peer = await connected(lambda: BufferedReceiver(cache))
        with peer:
            sending = asyncio.create_task(send(peer, data))
            sending.add_done_callback(lambda _: peer.shutdown(socket.SHUT_WR))
            assert b"".join(await take_all(receiver)) == data
        await receiver.aclose()

    async def test(cache: Cache) -> None:
        await asyncio.gather(*(one(cache) for _ in range(30)))

    run(test, 4)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_with_tls(run: Callable[..., None], tmp_path: Path) -> None:
    key, cert = f"{tmp_path}/key.pem", f"{tmp_path}/cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    )
    made = [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run(made, check=True, capture_output=True)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(cert, key)
    theirs = ssl.create_default_context(cafile=cert)
    data, receivers = content(20 * SIZE + 5), []

    async def test(cache: Cache) -> None:
        def make() -> BufferedReceiver[memoryview]:
            receivers.append(BufferedReceiver(cache))
            return receivers[-1]

        async with await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=ours) as server:
            _, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=theirs, server_hostname="localhost"
            )
            writer.write(data)
            writer.close()
            assert await take_all(receivers[0]) == pieces(data)
            await writer.wait_closed()
            await receivers[0].wait_closed()

    run(test, 2)


def test_it_refuses_what_is_not_allowed(run: Callable[..., None]) -> None:
    async def test(cache: Cache) -> None:
        for options in ({"at_least": 0}, {"at_least": SIZE + 1}, {"ahead": 0}, {"deliver": 7}):
            with pytest.raises(ConfigError, match=f"^{next(iter(options))}: "):
                BufferedReceiver(cache, **options)  # type: ignore[arg-type]

    run(test)
