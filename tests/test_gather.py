"""Streams in whole buffers: sockets on every loop, readers of asyncio, ASGI, iterables; cancelled and broken."""

from __future__ import annotations

import asyncio
import ctypes
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
import uvloop

import aslab
from aslab import ConfigError, gather
from aslab._cache import pool_of

from .support import allocator, settle

pytestmark = pytest.mark.anyio
SIZE = 8192
SIZES = [0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 3 * SIZE + 777]
content = random.Random(3).randbytes


@asynccontextmanager
async def one_buffer() -> AsyncIterator[aslab.Cache[memoryview]]:
    """A cache that never has a second buffer: whatever needs one while it holds the first hangs."""
    async with allocator(limit=SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, max_emergency=0)
        with anyio.fail_after(30):
            yield cache
        assert cache.stats().obj_held == 0


async def gathered(stream: Any, cache: aslab.Cache[memoryview]) -> list[bytes]:
    parts = []
    async for buf, n in gather(stream, cache):
        parts.append(bytes(buf.view[:n]))
        buf.free()
    return parts


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + SIZE] for at in range(0, len(data), SIZE)]


def cut(data: bytes) -> list[bytes]:
    """Chunks of any size, some empty, some larger than a buffer."""
    chance, chunks = random.Random(len(data)), [b""]
    while data:
        size = chance.choice([0, 1, 100, SIZE, 2 * SIZE + 1])
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, b""]


class Asgi:
    """The receive of an ASGI server, which counts how often it is asked."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.asked = 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        return self.messages.pop(0)


def request(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@asynccontextmanager
async def tcp() -> AsyncIterator[tuple[anyio.abc.SocketStream, anyio.abc.SocketStream]]:
    """Both ends of a connection."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    accepted: list[anyio.abc.SocketStream] = []
    over = anyio.Event()

    async def handle(server: anyio.abc.SocketStream) -> None:
        async with server:
            accepted.append(server)
            await over.wait()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            while not accepted:
                await anyio.sleep(0.001)
            yield client, accepted[0]
        over.set()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("size", SIZES)
async def test_a_socket_of_anyio_comes_in_whole_buffers(size: int) -> None:
    data = content(size)

    async def send(client: anyio.abc.SocketStream) -> None:
        await client.send(data)
        await client.send_eof()

    async with one_buffer() as cache, tcp() as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(send, client)
        assert await gathered(server, cache) == pieces(data)


@pytest.mark.parametrize("size", SIZES)
async def test_an_asgi_body_comes_in_whole_buffers(size: int) -> None:
    data = content(size)
    chunks = cut(data)
    with_empty_end = Asgi(*(request(chunk, number < len(chunks) - 1) for number, chunk in enumerate(chunks)))
    at_once = Asgi({"type": "http.request", "body": data})
    async with one_buffer() as cache:
        for receive in (with_empty_end, at_once):
            assert await gathered(receive, cache) == pieces(data)
            assert not receive.messages


@pytest.mark.parametrize("size", SIZES)
async def test_any_iterable_of_bytes_comes_in_whole_buffers(size: int) -> None:
    data = content(size)

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in cut(data):
            yield chunk

    async with one_buffer() as cache:
        assert await gathered(chunks(), cache) == pieces(data)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("size", SIZES)
def test_a_reader_of_asyncio_comes_in_whole_buffers(size: int, new_loop: Any) -> None:
    data = content(size)

    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            done.set_result(await gathered(reader, cache))
            writer.close()

        async with one_buffer() as cache, await asyncio.start_server(serve, "127.0.0.1") as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(data)
            writer.write_eof()
            assert await done == pieces(data)
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def test_nothing_more_is_read_until_there_is_a_buffer() -> None:
    receive = Asgi(request(content(SIZE)), request(b"second"), request(b"third", more=False))
    async with one_buffer() as cache:
        held = await cache.alloc()
        parts = gather(receive, cache)
        async with anyio.create_task_group() as tasks:

            async def first() -> None:
                buf, n = await anext(parts)
                assert n == SIZE
                buf.free()

            tasks.start_soon(first)
            await settle()
            assert receive.asked == 0
            held.free()
        assert receive.asked == 1
        held = await cache.alloc()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, parts)
            while not cache.stats().waiters:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert receive.asked == 2  # one message, to know whether a buffer is needed
        held.free()
        assert [bytes(buf.view[:n]) async for buf, n in freeing(parts)] == [b"secondthird"]


async def freeing(parts: Any) -> AsyncIterator[Any]:
    async for buf, n in parts:
        with buf:
            yield buf, n


async def test_an_idle_stream_holds_no_buffer() -> None:
    async with one_buffer() as cache, tcp() as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(gathered, server, cache)
        await anyio.sleep(0.01)
        assert cache.stats().obj_held == 0
        await client.send(b"a byte or two")
        while cache.stats().obj_held == 0:
            await anyio.sleep(0.001)
        await client.aclose()


async def test_what_is_in_hand_is_freed_when_it_is_cancelled_and_the_rest_is_refused() -> None:
    scope = anyio.CancelScope()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"some"
        scope.cancel()
        await anyio.sleep_forever()

    async with one_buffer() as cache:
        parts = gather(chunks(), cache)
        with scope:
            await anext(parts)
        assert scope.cancelled_caught
        assert cache.stats().obj_held == 0
        with pytest.raises(anyio.ClosedResourceError, match="failed within a buffer"):
            await anext(parts)


async def test_what_a_debug_letter_finds_then_hides_no_cancellation() -> None:
    scope = anyio.CancelScope()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"some"
        (slab,) = pool_of(cache).depot.slabs.complete
        ctypes.memset(slab.slots[0].address + SIZE, 1, 1)
        scope.cancel()
        await anyio.sleep_forever()

    async with allocator(debug="Z") as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        with scope:
            await anext(gather(chunks(), cache))
        assert scope.cancelled_caught
        assert cache.stats().obj_held == 0


async def test_a_client_that_disconnects_is_an_error() -> None:
    async with one_buffer() as cache:
        parts = gather(Asgi(request(b"half of"), {"type": "http.disconnect"}), cache)
        with pytest.raises(anyio.BrokenResourceError, match="disconnected before the end"):
            await anext(parts)
        assert cache.stats().obj_held == 0


async def test_after_aclose_there_is_nothing_more() -> None:
    async with one_buffer() as cache:
        receive = Asgi(request(content(2 * SIZE)))
        parts = gather(receive, cache)
        (await anext(parts))[0].free()
        await parts.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await anext(parts)
        assert receive.asked == 1


async def test_the_end_stays_the_end() -> None:
    async with one_buffer() as cache:
        parts = gather(Asgi(request(b"", more=False)), cache)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(parts)


async def test_a_movable_cache_and_one_with_a_ctor_do_as_well() -> None:
    async with allocator() as kmem:
        data = content(SIZE + 1)
        movable = kmem.create_cache("movable", SIZE, movable=True)
        built = kmem.create_cache("built", SIZE, ctor=len)
        got = []
        async for buf, n in gather(Asgi(request(data, more=False)), movable):
            with buf, buf.pin() as view:
                got.append(bytes(view[:n]))
        assert got == pieces(data)
        async for other, n in gather(Asgi(request(data, more=False)), built):
            with other:
                assert other.obj == SIZE
                assert other.view[:n] in pieces(data)


async def test_it_refuses_what_is_no_stream() -> None:
    async with one_buffer() as cache:
        for bad in (b"bytes", 7, None, ["chunks"]):
            with pytest.raises(ConfigError, match=r"^stream: .* an ASGI receive"):
                gather(bad, cache)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"^stream: 'websocket\.receive' .* HTTP"):
            await anext(gather(Asgi({"type": "websocket.receive"}), cache))
