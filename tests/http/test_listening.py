"""What comes over the socket of a server and is no request, or never becomes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

import psutil
import pytest
import uvloop
from aiohttp import web
from support.raw_http import reset_within_the_answer
from tandem_http.body import BodyTooSlow, Pace, read_body
from tandem_http.listening import listening

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
SOON_S = 10.0
TOO_SLOW = b" seconds."
"""The end of that answer; the server then goes on listening for a while, and closes."""


@contextlib.asynccontextmanager
async def server(*, idle_timeout: float = 60.0, pace: Pace | None = None) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        try:
            return web.Response(text=str(len(await read_body(request, pace or Pace()))))
        except BodyTooSlow as slow:
            return web.Response(status=408, text=str(slow))

    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/", answer)
    async with listening(app, host="127.0.0.1", port=0, backlog=16, idle_timeout=idle_timeout) as port:
        yield port


async def said(
    port: int, data: bytes, pieces: Iterable[bytes] = (), *, pause: float = 0.0, until: bytes = b""
) -> bytes:
    """All that the server says until it closes the connection, or up to `until`.

    The client goes on with a piece after every pause, for as long as it is listened to.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(data)
        hearing = asyncio.create_task(reader.readuntil(until) if until else reader.read())
        for piece in pieces:
            done, _ = await asyncio.wait([hearing], timeout=pause)
            if done:
                break
            writer.write(piece)
        async with asyncio.timeout(SOON_S):
            return await hearing


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 431, "headers_too_large"),
        (GET + b"X-A: " + b"a" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (GET + b"a" * 9000 + b": 1\r\n\r\n", 431, "headers_too_large"),
        (GET + b"a: 1\r\n" * 200 + b"\r\n", 431, "headers_too_large"),
        (b"\x16\x03\x01\x02hello\r\n\r\n", 400, "malformed_request"),
        (b"G@T / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/9.1\r\n\r\n", 400, "malformed_request"),
        (GET + b"no colon\r\n\r\n", 400, "malformed_request"),
        (GET + b"Content-Length: -1\r\n\r\n", 400, "malformed_request"),
        (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed_request"),
    ],
)
async def test_what_is_no_request_gets_an_error_in_the_apis_shape(
    caplog: pytest.LogCaptureFixture, data: bytes, status: int, code: str
) -> None:
    """Such clients got plain text, and left a traceback each in the log."""
    caplog.set_level(logging.INFO)
    async with server() as port:
        head, _, body = (await said(port, data)).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    (record,) = [record for record in caplog.records if record.name.startswith(("aiohttp", "tandem"))]
    assert record.exc_info is None
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300


def test_a_client_that_is_still_sending_sees_why_it_is_refused() -> None:
    """A head that comes in several packets was refused at the first of them, and the client saw a reset."""

    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as client:
            client.sendall(GET + b"Cookie: " + b"a" * 100_000)
            client.recv(1, socket.MSG_PEEK)  # the answer is there
            client.sendall(b"a" * 2_000_000)
            client.sendall(b"\r\n\r\n")
            return b"".join(iter(lambda: client.recv(65536), b""))

    async def asked() -> bytes:
        async with server() as port:
            return await asyncio.to_thread(ask, port)

    for run in (asyncio.run, uvloop.run):
        assert run(asked()).startswith(b"HTTP/1.0 431 ")


async def test_expectations_of_a_client_that_are_unknown() -> None:
    """They got plain text from the gateway, and from a pod a closed connection."""
    async with server() as port:
        head, _, body = (await said(port, GET + b"Expect: 200-ok\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.split()[1] == b"417"
    assert json.loads(body)["error"]["code"] == "expectation_failed"


async def test_a_bug_in_a_handler_still_leaves_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: web.Request) -> web.Response:
        raise ZeroDivisionError

    app = web.Application()
    app.router.add_get("/", fail)
    async with listening(app, host="127.0.0.1", port=0, backlog=16) as port:
        assert b" 500 " in await said(port, GET + b"\r\n")
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_that_resets_its_connection_leaves_no_traceback(
    run: Callable[[Coroutine[None, None, None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """On uvloop the next write raises before aiohttp cancels the handler: each such client was logged as a bug."""

    async def talk() -> None:
        over = asyncio.Event()

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"word")
                    await asyncio.sleep(0)
            finally:
                over.set()

        app = web.Application()
        app.router.add_post("/", answer)
        async with listening(app, host="127.0.0.1", port=0, backlog=16) as port:
            await reset_within_the_answer("127.0.0.1", port, "/", b"")
            async with asyncio.timeout(SOON_S):
                await over.wait()

    run(talk())
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["at first", "behind a request in order"])
async def test_heads_that_never_end_are_cut_off(before: bytes) -> None:
    async with server(idle_timeout=0.6) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            if before:
                writer.write(before)
                await reader.readuntil(b"\r\n\r\n0")
            writer.write(b"GET / HTTP/1.1\r\n")
            async with asyncio.timeout(SOON_S):
                with contextlib.suppress(ConnectionResetError):  # so it looks where bytes crossed the end
                    while not reader.at_eof():
                        writer.write(b"a: b\r\n")
                        with contextlib.suppress(TimeoutError):
                            assert await asyncio.wait_for(reader.read(1), 0.02) == b""


async def test_connections_that_say_nothing_are_closed() -> None:
    async with server(idle_timeout=0.6) as port:
        assert await said(port, b"") == b""


async def test_a_body_that_stops_is_a_408() -> None:
    async with server(pace=Pace(pause_s=0.2)) as port:
        answer = await said(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", until=TOO_SLOW)
    assert answer.split()[1] == b"408"
    assert b"3 bytes" in answer


async def test_a_trickled_body_is_a_408() -> None:
    """A timeout between bytes alone would let one byte at a time hold a place for as long as the client likes."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    async with server(pace=Pace(pause_s=0.4, bytes_per_s=1000)) as port:
        answer = await said(port, head, (b"x" for _ in range(10_000)), pause=0.02, until=TOO_SLOW)
    assert answer.split()[1] == b"408"


async def test_a_large_body_may_take_its_time_as_long_as_it_comes() -> None:
    pieces = [b"x" * 1000] * 60
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 60000\r\n\r\n"
    async with server(pace=Pace(pause_s=1.5, bytes_per_s=10_000)) as port:
        answer = await said(port, head, pieces, pause=0.04)
    assert answer.endswith(b"\r\n\r\n60000"), "2.4 seconds, with never 1.5 of silence"


async def test_what_was_sent_fast_earns_no_long_silence() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"
    async with server(pace=Pace(pause_s=0.2, bytes_per_s=1000)) as port:
        answer = await said(port, head + b"x" * 499_999, until=TOO_SLOW)
    assert answer.split()[1] == b"408"


def accepted(port: int) -> list[object]:
    """Connections that the server at `port` has."""
    mine = psutil.Process().net_connections("tcp")
    return [each for each in mine if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED]


@pytest.mark.parametrize("megabytes", [1, 32], ids=["in the kernel", "in the transport too"])
async def test_an_answer_that_is_not_taken_keeps_no_connection(megabytes: int) -> None:
    """Once the handler had returned nothing watched the client: who did not read kept connection and answer."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * (megabytes << 20))

    app = web.Application()
    app.router.add_get("/", answer)
    async with listening(app, host="127.0.0.1", port=0, backlog=16, take_timeout=0.3) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            client.connect(("127.0.0.1", port))
            client.send(GET + b"\r\n")
            async with asyncio.timeout(SOON_S):
                while not accepted(port):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            # No packet tells the client: its kernel has not asked for a while.
            async with asyncio.timeout(SOON_S):
                while accepted(port):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


def test_a_port_that_another_process_took_in_between_is_said_to_be_in_use() -> None:
    """Both had bound it. uvloop swallowed the error, and a pod ended with one about None when it had loaded."""

    async def listen_second() -> None:
        with _bound(0) as first, _bound(first.getsockname()[1]) as second:
            first.listen()
            with pytest.raises(OSError, match="in use"):
                async with listening(web.Application(), sock=second, backlog=16):
                    pass

    uvloop.run(listen_second())


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock
