"""Buffers between processes: claims, channels, refusals, and what is left when somebody dies."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import random
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis
import numpy as np
import pytest
from anyio import to_thread
from hypothesis import strategies as st

import aslab
from aslab import share
from aslab.backends import SharedMemory
from aslab.share import _link, _service
from aslab.share import _sockets as sockets
from aslab.share._ledger import Ledger
from aslab.share._wire import LONGEST, VERSION, Decoder, Garbage, Kind, Message, encode
from aslab.testing import check_consistency

from . import share_programs as programs
from .conftest import LOOPS
from .helpers import no_descriptors

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd"),
]
SIZE = programs.SIZE
Opened = tuple[aslab.Cache[memoryview], share.Service]


@contextlib.asynccontextmanager
async def opened(path: Path, objects: int = 16, **options: Any) -> AsyncIterator[Opened]:
    """Slabs alone: on a busy machine a grow may be late, and each emergency object would be a file of its own."""
    async with aslab.open_allocator(slabs=SharedMemory(), emergency=SharedMemory(), grow_timeout=3600) as kmem:
        cache = kmem.create_cache("frames", SIZE, max_objects=objects)
        async with share.serve(kmem, path, **options) as service:
            yield cache, service
        check_consistency(cache)


async def until(ready: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not ready():
            await anyio.sleep(0.002)


def files() -> int:
    """Descriptors of slabs that are open."""
    links = map(str, Path("/proc/self/fd").iterdir())
    return sum("memfd:aslab" in os.readlink(link) for link in links if os.path.lexists(link))  # noqa: PTH115


def slabs_mapped() -> set[str]:
    """The mappings of slabs in this process: their addresses, and the numbers of their files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {f"{line.split()[0]} {line.split()[4]}" for line in lines if "memfd:aslab" in line}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    gc.collect()
    before = files(), slabs_mapped()
    yield tmp_path / "socket"
    end = time.monotonic() + 60
    while (mapped := slabs_mapped() - before[1]) or files() > before[0]:  # the rest is released by a thread
        assert time.monotonic() < end, f"{mapped} are mapped, {files() - before[0]} descriptors left"
        gc.collect()
        time.sleep(0.01)


class TestClaims:
    async def test_a_buffer_is_read_elsewhere_and_freed_when_all_have_let_go(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            buf = await cache.alloc()
            buf.view[:5] = b"hello"
            shared = service.share(buf, 5)
            again = pickle.loads(pickle.dumps(shared.descriptor))
            claim = await client.attach(again)
            assert claim.view.readonly
            assert bytes(claim.view) == b"hello"
            assert len(claim) == 5
            shared.release()
            shared.release()
            assert cache.stats().obj_held == 1
            claim.release()
            claim.release()
            with pytest.raises(ValueError, match="released"):
                claim.view[0]
            await until(lambda: not cache.stats().obj_held)
            with pytest.raises(share.RefusedError, match="not any more"):
                await client.attach(again)

    async def test_the_next_owners_content_is_never_given_for_a_stale_descriptor(self, path: Path) -> None:
        async with opened(path, objects=1) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as first:
                pass
            with service.share(await cache.alloc()) as second:
                assert first.descriptor.offset == second.descriptor.offset
                with pytest.raises(share.RefusedError):
                    await client.attach(first.descriptor)

    async def test_a_slab_at_the_address_of_an_earlier_one_is_not_taken_for_that(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            addresses: set[int] = set()
            for number in range(4):
                buf = await cache.alloc()
                buf.view[0] = number
                addresses.add(buf.address)
                with service.share(buf) as shared, await client.attach(shared.descriptor) as claim:
                    assert claim.view[0] == number
                del buf
                await until(lambda: not cache.stats().obj_held)
                await cache.reap()
                assert not cache.stats().slab_total
            assert len(addresses) < 4, "the kernel maps the next one where the last one was"

    async def test_what_is_shared_does_not_move(self, path: Path) -> None:
        async with (
            aslab.open_allocator(slabs=SharedMemory(), emergency=SharedMemory(), grow_timeout=3600) as kmem,
            share.serve(kmem, path) as service,
        ):
            cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=True, magazine_size=2)
            bufs = [await cache.alloc() for _ in range(12)]
            seen = bufs[4].address
            service.share(bufs[4]).release()
            bufs[4] = await cache.alloc()
            assert bufs[4].address == seen, "a place that the service knows"
            shared = [service.share(bufs[number]) for number in (4, 8)]
            places = [bufs[number].address for number in (4, 8)]
            for number in (2, 3, 5, 6, 7, 9, 10, 11):
                bufs[number].free()
            await cache.defragment()
            assert [bufs[number].address for number in (4, 8)] == places
            for one in shared:
                one.release()
            bufs[0].free()
            bufs[1].free()

    async def test_a_place_that_was_shared_is_refused_to_another_cache_that_has_it_now(self, path: Path) -> None:
        async with aslab.open_allocator(slabs=SharedMemory(), emergency=SharedMemory(), grow_timeout=3600) as kmem:
            one, other = (kmem.create_cache(name, SIZE, merge=True, max_objects=8) for name in ("one", "other"))
            async with share.serve(one, path) as service:
                buf = await one.alloc()
                address = buf.address
                service.share(buf).release()
                with await other.alloc() as buf:
                    assert buf.address == address
                    with pytest.raises(aslab.ConfigError, match="of a cache"):
                        service.share(buf)

    async def test_a_buffer_that_its_producer_freed_all_the_same_is_refused(self, path: Path) -> None:
        async with opened(path, objects=1) as (cache, service), await share.connect(path) as client:
            buf = await cache.alloc()
            with service.share(buf) as shared:
                buf.free()
                with pytest.raises(share.RefusedError):
                    await client.attach(shared.descriptor)
        assert cache.stats().obj_held == 0

    async def test_writing_is_seen_by_the_producer_if_asked_for(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            buf = await cache.alloc()
            with service.share(buf) as shared, await client.attach(shared.descriptor, writable=True) as claim:
                claim.view[:2] = b"hi"
                assert bytes(buf.view[:2]) == b"hi"

    @pytest.mark.parametrize("what", [lambda view: np.frombuffer(view, np.uint8), lambda view: view[:3]])
    async def test_a_release_is_refused_while_something_reads_it(
        self, path: Path, what: Callable[[memoryview], Any]
    ) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as shared:
                claim = await client.attach(shared.descriptor)
            kept = what(claim.view)
            with pytest.raises(BufferError):
                claim.release()
            await anyio.sleep(0.02)
            assert cache.stats().obj_held == 1
            del claim  # the claim is held as long as what reads it
            await anyio.sleep(0.02)
            assert cache.stats().obj_held == 1
            del kept
            gc.collect()
            await until(lambda: not cache.stats().obj_held)

    async def test_an_exception_on_its_way_out_is_not_hidden(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as shared:
                claim = await client.attach(shared.descriptor)
            with pytest.raises(KeyError), claim:
                part = claim.view[:4]
                raise KeyError
            del part
            await until(lambda: not cache.stats().obj_held)

    async def test_handed_over_it_belongs_to_that_client_alone(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            peer = await service.client(os.getpid())
            descriptor = service.hand_over(await cache.alloc(), peer, peer)  # named twice, it has one claim
            claim = await client.attach(descriptor)
            assert claim.descriptor == descriptor
            claim.release()
            await until(lambda: not cache.stats().obj_held)
            service.hand_over(await cache.alloc(), peer)
            assert service.shared == 1
        assert cache.stats().obj_held == 0

    async def test_a_cancelled_attach_leaves_no_claim(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            shared = service.share(await cache.alloc())
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.attach(shared.descriptor)
            shared.release()
            with pytest.raises(share.RefusedError):
                await client.attach(shared.descriptor)
            await until(lambda: not cache.stats().obj_held)

    async def test_what_cannot_be_shared_is_refused_and_stays_the_callers(self, path: Path) -> None:
        async with opened(path) as (cache, service), aslab.open_allocator() as other:
            foreign = await other.create_cache("c", 64).alloc()
            with pytest.raises(aslab.ConfigError, match="of a cache"):
                service.share(foreign)
            foreign.free()
            with await cache.alloc() as buf, pytest.raises(aslab.ConfigError, match="from 1 to"):
                service.share(buf, SIZE + 1)
            with await cache.alloc() as buf, pytest.raises(aslab.ConfigError, match="one at least"):
                service.hand_over(buf)
            buf = await cache.alloc()
            with service.share(buf), pytest.raises(aslab.ConfigError, match="shared already"):
                service.share(buf)

    async def test_ordinary_memory_is_refused(self, path: Path) -> None:
        async with aslab.open_allocator() as kmem:
            cache = kmem.create_cache("c", 64)
            async with share.serve(cache, path) as service:
                with await cache.alloc() as buf, pytest.raises(aslab.ConfigError, match="SharedMemory"):
                    service.share(buf)

    async def test_a_slab_that_goes_back_is_unmapped_everywhere(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_service, "LOOK", 0.01)
        before = slabs_mapped()
        async with opened(path) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as shared, await client.attach(shared.descriptor):
                mapped = slabs_mapped() - before
            assert len(mapped) == 2
            await until(lambda: not cache.stats().obj_held)
            await cache.reap()
            await until(lambda: not service._places._known)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.receiver("x").receive)  # hears of it
                await until(lambda: not mapped & slabs_mapped())
                tasks.cancel_scope.cancel()


class TestFindings:
    async def test_what_a_debug_letter_finds_in_one_buffer_keeps_no_other_of_a_client_that_is_gone(self) -> None:
        async with aslab.open_allocator(debug="Z") as kmem:
            cache = kmem.create_cache("c", 64)
            ledger, client = Ledger(), object()
            for buf in await cache.alloc_many(3):
                ctypes.memset(buf.address + 64, 1, 1)
                ledger.give(client, ledger.enter(buf, 1, 0, 64))
            ledger.lose(client)
            assert (ledger.held(client), len(ledger), cache.stats().obj_held) == (0, 0, 0)


class TestClosing:
    async def test_what_a_client_holds_as_the_service_closes_stays_allocated(self, path: Path) -> None:
        with pytest.warns(ResourceWarning) as told:
            async with opened(path, linger=0.01) as (cache, service):
                client = await share.connect(path)
                with service.share(await cache.alloc()) as shared:
                    claim = await client.attach(shared.descriptor)
        assert any("1 clients held 1 buffers" in str(one.message) for one in told)
        with pytest.raises(share.DisconnectedError):
            await client.attach(shared.descriptor)
        assert cache.stats().obj_held == 1
        _service._abandoned.pop().free()
        claim.release()
        client.close()
        await until(lambda: cache.stats().slab_total == 0)

    async def test_one_service_at_a_path_and_a_dead_one_is_replaced(self, path: Path) -> None:
        async with opened(path):
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(FileExistsError):
                sockets.listen(path)
        assert not path.exists()
        sockets.listen(path).close()
        async with opened(path):
            pass
        path.write_text("mine")
        with pytest.raises(FileExistsError):
            sockets.listen(path)

    async def test_an_exception_in_the_block_comes_out_as_it_is(self, path: Path) -> None:
        with pytest.raises(KeyError):
            async with opened(path):
                raise KeyError


class TestChannels:
    @staticmethod
    def hold(service: share.Service, counts: list[int]) -> bool:
        """Whether the receivers hold so many frames."""
        return [len(member.frames) for member in service.channel("frames").members] == counts

    async def test_every_receiver_gets_every_frame_in_order(self, path: Path) -> None:
        read: list[list[int]] = [[], []]

        async def consume(to: list[int]) -> None:
            async with await share.connect(path) as client:
                async for claim in client.receiver("frames"):
                    with claim:
                        to.append(programs.check(claim.view))

        async with opened(path) as (cache, service), anyio.create_task_group() as tasks:
            sender = share.Sender(service, "frames")
            tasks.start_soon(consume, read[0])
            tasks.start_soon(consume, read[1])
            await until(lambda: sender.receivers == 2)
            for number in range(50):
                buf = await cache.alloc()
                programs.fill(buf.view, number)
                await sender.send(buf)
            sender.close()
            with await cache.alloc() as buf, pytest.raises(anyio.ClosedResourceError):
                await sender.send(buf)
        assert read == [list(range(50))] * 2

    async def test_one_that_never_releases_holds_up_the_sender_and_nothing_else(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            receiver, sender = client.receiver("frames"), share.Sender(service, "frames", window=2)
            held = []
            for _ in range(2):
                await sender.send(await cache.alloc())
                held.append(await receiver.receive())
            buf = await cache.alloc()
            with pytest.raises(anyio.WouldBlock):
                sender.send_nowait(buf)
            with anyio.move_on_after(0.05) as waited:
                await sender.send(buf)
            assert waited.cancelled_caught
            buf.view[0] = 1  # still the caller's
            with service.share(await cache.alloc()) as other, await client.attach(other.descriptor):
                pass
            held.pop().release()
            with anyio.fail_after(60):
                await sender.send(buf)
            held.pop().release()
            receiver.close()
            receiver.close()
            with pytest.raises(anyio.ClosedResourceError):
                await receiver.receive()
            await until(lambda: not cache.stats().obj_held)

    async def test_receivers_of_one_client_hold_up_the_sender_each_by_what_it_holds_itself(
        self, path: Path
    ) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            one, two = client.receiver("frames"), client.receiver("frames")
            sender = share.Sender(service, "frames", window=2)
            await until(lambda: sender.receivers == 2)
            for holder, other in ((one, two), (two, one)):
                kept = []
                for _ in range(2):
                    await sender.send(await cache.alloc())
                    kept.append(await holder.receive())
                    (await other.receive()).release()
                counts = [2 * (receiver is holder) for receiver in (one, two)]
                await until(partial(self.hold, service, counts))
                with await cache.alloc() as buf, pytest.raises(anyio.WouldBlock):
                    sender.send_nowait(buf)
                for claim in kept:
                    claim.release()
                await until(lambda: not service.shared)

    async def test_a_receiver_that_closes_gives_back_what_it_has_not_seen_and_nothing_of_another(
        self, path: Path
    ) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            one, two = client.receiver("frames"), client.receiver("frames")
            sender = share.Sender(service, "frames")
            await until(lambda: sender.receivers == 2)
            one.close()
            await sender.send(await cache.alloc())  # it has not heard of that yet
            claim = await two.receive()
            await until(lambda: sender.receivers == 1)
            assert service.shared == 1
            claim.release()
            await until(lambda: not service.shared)

    async def test_a_receiver_that_closes_with_a_lie_holds_up_no_sender(self, path: Path) -> None:
        async with opened(path) as (cache, service):
            raw, sender = sockets.connect(path), share.Sender(service, "frames")
            raw.send(encode(Message(Kind.JOIN, 7, text="frames")))
            descriptor = await sender.send(await cache.alloc())
            raw.send(encode(Message(Kind.RELEASE, generations=(descriptor.generation,))))  # no claim of a receiver
            raw.send(encode(Message(Kind.LEAVE, 7)))
            await until(lambda: not service.clients)
            assert not sender.receivers
            raw.close()

    async def test_releases_that_find_no_room_go_once_there_is_some_while_a_task_waits_for_a_frame(
        self, path: Path
    ) -> None:
        async with opened(path, objects=64) as (cache, service), await share.connect(path) as client:
            client._link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            receiver, sender = client.receiver("frames"), share.Sender(service, "frames", window=64)
            claims = []
            for _ in range(64):
                await sender.send(await cache.alloc())
                claims.append(await receiver.receive())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receiver.receive)
                await anyio.wait_all_tasks_blocked()
                while claims:
                    claims.pop().release()
                assert client._link._out, "there was room for all"
                await until(lambda: not service.shared)
                tasks.cancel_scope.cancel()

    async def test_one_thread_waits_for_room_and_is_asked_for_again_where_none_was_to_be_had(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(call: Callable[[], None], args: tuple[()]) -> None:
            started.append(call)
            if len(started) == 1:
                raise RuntimeError("can't start new thread")

        started: list[Callable[[], None]] = []
        monkeypatch.setattr(_link, "_thread", SimpleNamespace(start_new_thread=start))
        with sockets.listen(path), share.connect_blocking(path) as client:
            while not started:
                client._link.frames[1] = collections.deque()
                client._link.leave(1)
            for _ in range(3):
                client._link.flush()
            assert len(started) == 2

    async def test_the_service_sees_a_client_close_that_has_no_room_for_its_releases(self, path: Path) -> None:
        with (
            sockets.listen(path) as listener,
            share.connect_blocking(path) as client,
            sockets.accept(listener) as sock,
        ):
            for number in range(100000):
                client._link.frames[number] = collections.deque()
                client._link.leave(number)
                if client._link._out:
                    break
            await anyio.sleep(0.02)  # by now a thread waits for room, and keeps the socket from closing
            client.close()
            poll = select.poll()
            poll.register(sock, 0)
            assert poll.poll(60000) == [(sock.fileno(), select.POLLHUP)]

    async def test_threads_on_both_sides(self, path: Path) -> None:
        def produce() -> None:
            for number in range(20):
                buf = cache.alloc_blocking()
                programs.fill(buf.view, number)
                sender.send_blocking(buf)
            service.portal.call(sender.close)

        async with opened(path) as (cache, service), anyio.create_task_group() as tasks:
            sender = share.Sender(service, "frames")
            tasks.start_soon(to_thread.run_sync, programs.consume, str(path))
            await to_thread.run_sync(produce)

    async def test_releases_come_back_in_batches_while_frames_wait(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_link, "PAUSE", 60)
        async with opened(path, objects=20) as (cache, service), await share.connect(path) as client:
            receiver, sender = client.receiver("frames"), share.Sender(service, "frames", window=20)
            for _ in range(20):
                await sender.send(await cache.alloc())
            while client._link.feed():  # a slab's file ends a read
                pass
            for shared in [20] * 15 + [4] * 4:  # the 16th takes the others with it
                (await receiver.receive()).release()
                if shared == 4:
                    await until(lambda: service.shared < 20)
                await anyio.lowlevel.checkpoint()
                assert service.shared == shared
            (await receiver.receive()).release()  # no more wait
            await until(lambda: not service.shared)

    async def test_a_sender_reads_releases_itself_but_lets_others_run(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 101 sends with a window of 4, every 8th lets others run: not every 4th, and not none."""
        turns = 0

        async def checkpoint() -> None:
            nonlocal turns
            turns += 1
            await real()

        real = anyio.lowlevel.checkpoint
        async with opened(path) as (cache, service):
            await cache.prefill(16)  # no send waits for memory
            with await to_thread.run_sync(share.connect_blocking, path) as client:
                receiver, sender = client.receiver("frames"), share.Sender(service, "frames")
                await until(lambda: sender.receivers)
                with monkeypatch.context() as patched:
                    patched.setattr(anyio.lowlevel, "checkpoint", checkpoint)
                    patched.delattr(share.Service, "change")  # there is always something to hear
                    for _ in range(101):
                        await sender.send(await cache.alloc())
                        receiver.receive(timeout=60).release()
                assert turns == 12

    async def test_what_was_read_first_is_allocated_first(self, path: Path) -> None:
        """What has just been read is in the cache of the reader's processor, where writing takes longer."""
        async with opened(path, objects=5) as (cache, service), await share.connect(path) as client:
            receiver, sender = client.receiver("frames"), share.Sender(service, "frames")
            await cache.prefill(5)
            bufs = [await cache.alloc() for _ in range(5)]
            places = [buf.address for buf in bufs]
            for buf in bufs[:4]:
                await sender.send(buf)
            for claim in [await receiver.receive() for _ in range(4)]:
                claim.release()
            await sender.send(bufs[4])
            again = [await cache.alloc() for _ in range(4)]
            assert [buf.address for buf in again] == places[:4]
            for buf in again:
                buf.free()

    async def test_a_frame_that_nobody_is_left_to_get_is_freed(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            client.receiver("frames")
            sender = share.Sender(service, "frames")
            await until(lambda: sender.receivers)
            buf = await cache.alloc()
            service.clients[0].drop()  # its receiver goes in a moment
            sender.send_nowait(buf)
            assert (service.shared, cache.stats().obj_held) == (0, 0)

    async def test_a_file_that_comes_as_another_thread_closes_the_client_is_closed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def receive(sock: socket.socket, *, wait: bool = False) -> tuple[bytes, list[int], bool]:
            data, fds, short = real(sock, wait=wait)
            if fds:
                client.close()
            return data, fds, short

        real = sockets.receive
        monkeypatch.setattr(sockets, "receive", receive)
        async with opened(path) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as shared:
                before = files()
                with pytest.raises(share.DisconnectedError, match="this client was closed"):
                    await client.attach(shared.descriptor)
                assert files() == before

    async def test_closing_a_client_ends_a_wait_in_another_thread(self, path: Path) -> None:
        def wait() -> None:
            with pytest.raises(share.DisconnectedError, match="this client was closed"):
                receiver.receive()
            ended.set()

        async with opened(path) as (_, service):
            client, ended = await to_thread.run_sync(share.connect_blocking, path), threading.Event()
            receiver = client.receiver("frames")
            thread = threading.Thread(target=wait)
            thread.start()
            await until(lambda: service.channel("frames").members)
            client.close()
            assert await to_thread.run_sync(ended.wait, 60)
            thread.join()

    async def test_a_timeout_of_one_that_blocks(self, path: Path) -> None:
        def wait() -> None:
            with share.connect_blocking(path) as client, pytest.raises(TimeoutError):
                client.receiver("frames").receive(timeout=0.01)

        async with opened(path):
            await to_thread.run_sync(wait)


places = st.builds(share.Descriptor, *[st.integers(0, 2**32 - 1)] + [st.integers(0, 2**64 - 1)] * 3)
messages = st.builds(
    Message,
    st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    places,
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**64 - 1), max_size=20).map(tuple),
    st.text(max_size=50),
)


class TestGarbage:
    @hypothesis.given(st.lists(messages, max_size=5), st.integers(1, 50))
    def test_messages_survive_any_cut(self, sent: list[Message], cut: int) -> None:
        data, decoder = b"".join(map(encode, sent)), Decoder()
        got = [one for at in range(0, len(data), cut) for one in decoder.feed(data[at : at + cut])]
        assert b"".join(map(encode, got)) == data
        assert [one.kind for one in got] == [one.kind for one in sent]

    @hypothesis.given(st.binary(max_size=200))
    def test_garbage_is_refused_by_the_decoder_or_waits_for_more(self, data: bytes) -> None:
        with contextlib.suppress(Garbage):
            for message in Decoder().feed(data):
                assert isinstance(message.kind, Kind)

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (bytes([0, 0, VERSION + 1, 4]), "version"),
            (bytes([0, 0, VERSION, 99]), "kind 99"),
            ((LONGEST + 1).to_bytes(2, "little") + bytes([VERSION, 4]), "bytes"),
            (bytes([13, 0, VERSION, 4]) + bytes(13), "too many"),
            (bytes([2, 0, VERSION, 4]) + bytes(2), "cannot be read"),
            (bytes([6, 0, VERSION, 3]) + bytes(4) + b"\xff\xff", "cannot be read"),
        ],
    )
    async def test_the_client_is_told_why(self, path: Path, data: bytes, why: str) -> None:
        async with opened(path):
            raw = sockets.connect(path)
            raw.sendall(data)
            await anyio.wait_readable(raw)
            (message,) = Decoder().feed(raw.recv(5000))
            assert message.kind is Kind.ERROR
            assert why in message.text
            await anyio.wait_readable(raw)
            assert raw.recv(10) == b""
            raw.close()

    async def test_nothing_on_the_socket_harms_the_service(self, path: Path) -> None:
        """Garbage, and well-formed lies; meanwhile a client that behaves is served."""
        chosen = random.Random(5)
        async with opened(path) as (cache, service), await share.connect(path) as client:
            shared = service.share(await cache.alloc())
            real = shared.descriptor

            def lie() -> bytes:
                forged = share.Descriptor(
                    real.slab, chosen.choice([0, 4096, 2**63]), real.size, chosen.randrange(3)
                )
                kind = chosen.choice(list(Kind))
                return encode(Message(kind, chosen.randrange(5), forged, 7, (chosen.randrange(3),), "x"))

            for turn in range(60):
                raw = sockets.connect(path)
                with contextlib.suppress(OSError):
                    for _ in range(5):
                        raw.send(lie() if turn % 2 else chosen.randbytes(chosen.randrange(300)))
                        await anyio.lowlevel.checkpoint()
                raw.close()
                with await client.attach(real) as claim:
                    assert len(claim) == SIZE
            await until(lambda: len(service.clients) == 1)
            shared.release()
            await until(lambda: not cache.stats().obj_held)

    async def test_forged_descriptors_are_refused(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            with service.share(await cache.alloc()) as shared:
                real = shared.descriptor
                forged = [
                    share.Descriptor(real.slab, 0, 2**40, real.generation),
                    share.Descriptor(real.slab + 1, real.offset, real.size, real.generation),
                    share.Descriptor(real.slab, real.offset, real.size, real.generation + 1),
                    share.Descriptor(-1, 0, 0, 0),
                    share.Descriptor("x", 0, 0, 0),  # type: ignore[arg-type]
                ]
                for one in forged:
                    with pytest.raises(share.RefusedError):
                        await client.attach(one)
                with pytest.raises(aslab.ConfigError):
                    await client.attach("x")  # type: ignore[arg-type]
                (await client.attach(real)).release()

    async def test_one_that_asks_and_never_reads_is_dropped(self, path: Path) -> None:
        async with opened(path) as (_, service):
            raw = sockets.connect(path)
            ask = encode(Message(Kind.CLAIM, 1, share.Descriptor(1, 2, 3, 4)))
            with anyio.fail_after(60), pytest.raises(OSError):  # noqa: PT011  (reset, or a broken pipe)
                while True:
                    with contextlib.suppress(BlockingIOError):
                        raw.send(ask * 100)
                    await anyio.lowlevel.checkpoint()
            raw.close()
            await until(lambda: not service.clients)

    async def test_a_client_without_descriptors_left_says_so(self, path: Path) -> None:
        async with opened(path) as (cache, service), await share.connect(path) as client:
            await until(lambda: service.clients)
            with (
                service.share(await cache.alloc()) as shared,
                no_descriptors(),
                pytest.raises(share.DisconnectedError, match="too many open files"),
            ):
                await client.attach(shared.descriptor)
            await until(lambda: not cache.stats().obj_held)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    async def test_another_user_is_refused_even_where_the_socket_lets_them_in(self) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # each pytest that begins closes its own to others
            Path(folder).chmod(0o755)
            await self.refused(Path(folder, "socket"))

    async def refused(self, path: Path) -> None:
        script = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
            "s.connect(sys.argv[1]); s.settimeout(60); print(s.recv(10))"
        )
        async with opened(path) as (_, service):
            for mode, told in ((0o600, b"PermissionError"), (0o666, b"b''")):
                path.chmod(mode)
                command = [sys.executable, "-c", script, str(path)]
                done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT)
                assert told in done.stdout
            assert not service.clients


Start = Callable[[str, Path], "Process"]


class Process:
    """One of the programs, however it was started."""

    def __init__(self, kind: str, program: str, path: Path) -> None:
        if kind == "program":
            command = [sys.executable, "-m", "tests.share_programs", program, str(path)]
            self.popen: Any = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
        else:
            context: Any = multiprocessing.get_context(kind)
            self.popen = context.Process(target=getattr(programs, program), args=(str(path),))
            self.popen.start()
        self.pid: int = self.popen.pid

    async def kill(self) -> None:
        """It must have been well until now."""
        self.popen.kill()
        assert await self.ended() == -9

    async def ended(self) -> int:
        wait = self.popen.join if hasattr(self.popen, "join") else self.popen.wait
        await to_thread.run_sync(wait)
        code = self.popen.exitcode if hasattr(self.popen, "exitcode") else self.popen.returncode
        assert isinstance(code, int)
        return code


async def kill_consumers(path: Path, kind: str, times: int) -> None:
    chosen = random.Random(times)

    async def produce() -> None:
        number = 0
        with contextlib.suppress(anyio.ClosedResourceError):
            while True:
                buf = await cache.alloc()
                programs.fill(buf.view, number)
                number += 1
                try:
                    await sender.send(buf)
                except anyio.ClosedResourceError:
                    buf.free()
                    raise

    async with opened(path) as (cache, service), anyio.create_task_group() as tasks:
        sender = share.Sender(service, "frames")
        survivor = Process(kind, "consume", path)
        tasks.start_soon(produce)
        await service.client(survivor.pid)
        for turn in range(times):
            victim = Process(kind, "hold" if turn % 4 == 3 else "consume", path)
            await service.client(victim.pid)
            await anyio.sleep(chosen.uniform(0, 0.02))
            await victim.kill()
            await until(lambda: len(service.clients) == 1)
        sender.close()
        assert await survivor.ended() == 0
        await until(lambda: not service.shared and not cache.stats().obj_held)


async def kill_producers(path: Path, kind: str, times: int) -> None:
    chosen, before = random.Random(times), slabs_mapped()
    for _ in range(times):
        await kill_producer(path, kind, chosen.uniform(0, 0.02))
        gc.collect()
        assert slabs_mapped() <= before


async def kill_producer(path: Path, kind: str, after: float) -> None:
    producer = Process(kind, "produce", path)
    client: share.Client | None = None
    with anyio.fail_after(60):
        while client is None:
            with contextlib.suppress(OSError):
                client = await share.connect(path)
            await anyio.sleep(0.005)
    receiver = client.receiver("frames")
    end, number = time.monotonic() + after, -1
    kept = await receiver.receive()
    content = bytes(kept.view)
    while time.monotonic() < end:
        with await receiver.receive() as claim:
            last, number = number, programs.check(claim.view)
            assert number > last
    await producer.kill()
    with pytest.raises(share.DisconnectedError, match=r"gone|broke"):
        while True:
            (await receiver.receive()).release()
    assert bytes(kept.view) == content
    assert programs.check(kept.view) >= 0
    kept.release()
    client.close()


@pytest.mark.parametrize("anyio_backend", [LOOPS["asyncio"]], ids=["asyncio"])
class TestDeath:
    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    async def test_of_consumers(self, path: Path) -> None:
        await kill_consumers(path, "fork", 5)

    async def test_of_producers(self, path: Path) -> None:
        await kill_producers(path, "program", 1)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver"])
    async def test_of_100_consumers(self, path: Path, kind: str) -> None:
        await kill_consumers(path, kind, 100)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver"])
    async def test_of_100_producers(self, path: Path, kind: str) -> None:
        await kill_producers(path, kind, 100)

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    async def test_a_child_by_fork_that_closes_its_client_leaves_that_of_its_parent(self, path: Path) -> None:
        async with opened(path) as (cache, service):
            with await to_thread.run_sync(share.connect_blocking, path) as client:
                child = os.fork()
                if not child:
                    client.close()
                    os._exit(0)
                os.waitpid(child, 0)
                with service.share(await cache.alloc()) as shared:
                    (await to_thread.run_sync(client.attach, shared.descriptor)).release()

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    async def test_a_child_by_fork_does_not_keep_a_connection_open(self, path: Path) -> None:
        async with opened(path) as (_, service):
            client = await share.connect(path)
            await until(lambda: service.clients)
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            client.close()
            try:
                await until(lambda: not service.clients)
            finally:
                os.close(reading)
                os.close(writing)  # the child lives until here
                os.waitpid(child, 0)
