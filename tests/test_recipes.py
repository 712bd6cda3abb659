"""The recipes of docs/recipes.md, by the commands that the page gives: real servers, real sockets.

Each server begins with its memory stuck, until a file is gone: a module wraps ``aslab.open_allocator`` and then
imports the program. While it is stuck uploads wait for a moment only, and later as long as it takes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "examples" / "recipes"
PIECE = 256 * 2**10
LIMIT = 2**20
SLOW = 2 * LIMIT // PIECE
"""Clients that are slow: twice as many as there are buffers."""
BODY = os.urandom(300_000)

FAULTY = """
import sys
from functools import partial
from pathlib import Path
import anyio
import aslab
from aslab.backends import Callback, Heap, Region

async def acquire(nbytes, align, gfp):
    while Path(__file__).with_name("stuck").exists():
        await anyio.sleep(0.01)
    PROGRAM.PATIENCE = 60
    return await Heap().acquire(nbytes, align, gfp)

stuck = Callback(acquire, Heap().release)
aslab.open_allocator = partial(aslab.open_allocator, slabs=stuck, emergency=stuck)
import PROGRAM
from PROGRAM import app
if __name__ == "__main__":
    PROGRAM.web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
"""

SERVERS = {
    "fastapi on uvicorn": ("fastapi_uploads", ["-m", "uvicorn", "--port", "PORT", "MODULE:app"]),
    "starlette on uvicorn": ("starlette_uploads", ["-m", "uvicorn", "--port", "PORT", "MODULE:app"]),
    "starlette on hypercorn and trio": (
        "starlette_uploads",
        ["-m", "hypercorn", "-k", "trio", "-b", "127.0.0.1:PORT", "MODULE:app"],
    ),
    "aiohttp": ("aiohttp_uploads", ["-m", "MODULE", "PORT"]),
}
NEEDS = {"fastapi_uploads": "fastapi", "starlette_uploads": "starlette", "aiohttp_uploads": "aiohttp"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(name: str, folder: Path, module: str = "", **env: str) -> Iterator[int]:
    """A server by its command, and its port; what it has logged is looked at when it has ended."""
    program, command = SERVERS[name]
    pytest.importorskip(NEEDS[program])
    pytest.importorskip("hypercorn" if "hypercorn" in command else "uvicorn")
    port = free_port()
    command = [part.replace("PORT", f"{port}").replace("MODULE", module or program) for part in command]
    uploads = folder / "uploads"
    uploads.mkdir()
    paths = os.pathsep.join(map(str, (folder, RECIPES, ROOT)))
    log = folder / "log"  # a pipe that nobody reads would stop a server that has much to say
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "always::ResourceWarning", *command],
            stdout=said,
            stderr=said,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "UPLOAD_MIB": f"{LIMIT // 2**20}",
                "UPLOAD_FOLDER": f"{uploads}",
                **env,
            },
        )
    try:
        wait_until(lambda: is_listening(port) or process.poll() is not None)
        yield port
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert "Traceback" not in log.read_text(), log.read_text()
        ours = re.findall("ResourceWarning: (?:cache|the allocator).*", log.read_text())
        assert not ours, ours
    finally:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response, answer


def begin_upload(port: int) -> socket.socket:
    """A client that sends more than two buffers hold of its body, and then no more."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + bytes(2 * PIECE + 1)
    )
    return sock


@pytest.mark.parametrize("name", SERVERS)
def test_uploads_are_told_503_while_memory_is_stuck_and_slow_clients_hold_none_of_it(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY.replace("PROGRAM", SERVERS[name][0]))
    uploads = tmp_path / "uploads"
    (tmp_path / "stuck").touch()
    with serving(name, tmp_path, "faulty", UPLOAD_PATIENCE="0.05") as port:
        response, _ = ask(port, "POST", "/files", BODY)
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert ask(port, "POST", "/files", b"")[0].status == 201  # takes no memory

        (tmp_path / "stuck").unlink()
        wait_until(lambda: ask(port, "POST", "/files", BODY)[0].status == 201)
        with ExitStack() as slow:
            for _ in range(SLOW):
                slow.enter_context(begin_upload(port))
            wait_until(lambda: sum(part.stat().st_size > PIECE for part in uploads.glob("*.part")) == SLOW)
            response, answer = ask(port, "POST", "/files", BODY)
            assert response.status == 201
            stored = json.loads(answer)
            assert stored["bytes"] == len(BODY)
            assert (uploads / stored["name"]).read_bytes() == BODY
        wait_until(lambda: not list(uploads.glob("*.part")))  # those whose clients have gone

        if "fastapi" in name:
            assert json.loads(ask(port, "GET", "/health")[1]) == {"state": "ok", "reasons": []}
            figures = ask(port, "GET", "/metrics")[1].decode()
            assert re.search(r'aslab_gave_up_total\{allocator="worker-\d+",cache="pieces"\} [1-9]', figures)


@pytest.mark.slow
def test_workers_share_the_limit(tmp_path: Path) -> None:
    limits: dict[str, float] = {}

    def both_answered() -> bool:
        figures = ask(port, "GET", "/metrics")[1].decode()
        found = re.search(r'aslab_memory_limit_bytes\{allocator="worker-(\d+)",kind="slabs"\} (\S+)', figures)
        assert found
        limits[found[1]] = float(found[2])
        return len(limits) == 2

    with serving("fastapi on uvicorn", tmp_path, WEB_CONCURRENCY="2") as port:
        wait_until(both_answered)
    assert list(limits.values()) == [LIMIT / 2, LIMIT / 2]


@pytest.mark.slow
def test_fast_clients_are_served_beside_slow_ones_only_where_a_client_cannot_hold_memory() -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "slow_clients.py", "--rounds", "1", "--seconds", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    served = {way: float(uploads) for way, uploads, *_ in rows}
    assert served["a lease for each piece (the recipe)"] > 0
    assert served["a lease for each request"] == 0


def test_a_service_faulted_in_the_lab_answers_503_and_recovers() -> None:
    pytest.importorskip("httpx")
    pytest.importorskip("starlette")
    pytest.importorskip("trio")
    done = subprocess.run(
        [sys.executable, "-W", "error", RECIPES / "faulted_service.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * (  # on asyncio, and on trio
        "growth is stuck: 201 after 0.1 s\nno memory at all: 503 after 2.0 s\nit is back: 201 after 0.0 s\n"
    )


def test_the_page_shows_lines_of_the_programs() -> None:
    programs = [path.read_text() for path in RECIPES.glob("*.py")]
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        assert any(block in program for program in programs), block


def test_every_recipe_is_tested() -> None:
    tested = {f"{program}.py" for program, _ in SERVERS.values()} | {"faulted_service.py"}
    assert {path.name for path in RECIPES.glob("*.py")} == tested
