"""Load on a gateway: many concurrent streams against fake engine processes, and the latency it adds per chunk.

    python -m gateway.load --streams 1000 --chunks-per-second 4000 --seconds 15

Every chunk carries the time at which its engine wrote it (one machine, one monotonic clock). The same load is
run straight against the engines, so that what the client and the engines themselves cost is known. Engines and
clients speak HTTP/1.1 by hand: they must be much cheaper than the gateway that they measure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop
from gateway.fake_engine import status
from gateway.processes import gateway_process, python, written
from tandem_contract.flags import GatewayFlags

_STAMP = re.compile(rb'"t":(\d+)')
_PADDING = "x" * 180
"""Makes a chunk about as long as an engine's own."""
RAMP_S = 5.0
"""The streams are opened over this time: what is measured is the relay, not a burst of arrivals."""


class EngineProtocol(asyncio.Protocol):
    """Answers status polls at once, everything else with a stream of time-stamped chunks."""

    def __init__(self, chunks: int, interval: float) -> None:
        self._chunks = chunks
        self._interval = interval
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            answer = json.dumps(status("load").to_json()).encode()
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
            )
            self._transport.write(head + answer)
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self._left = self._chunks
        loop = asyncio.get_running_loop()
        self._next = loop.time() + random.random() * self._interval
        self._timer = loop.call_at(self._next, self._write)

    def _write(self) -> None:
        if self._left == 0:
            self._transport.write(_chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        self._left -= 1
        self._transport.write(_chunked(b'data: {"t":%d,"pad":"%s"}\n\n' % (time.monotonic_ns(), _PADDING.encode())))
        self._next += self._interval
        self._timer = asyncio.get_running_loop().call_at(self._next, self._write)


class ClientProtocol(asyncio.Protocol):
    """One stream; `ended` is True when it was answered with 200 and closed with `[DONE]`."""

    def __init__(self, latencies: list[int]) -> None:
        self._latencies = latencies
        self._head = b""
        self._tail = b""
        self.chunks = 0
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        cast("asyncio.Transport", transport).write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._head = self._head or data[:12]
        for stamp in _STAMP.findall(data):
            self._latencies.append(now - int(stamp))
            self.chunks += 1
        self._tail = (self._tail + data)[-64:]
        if self._tail.endswith(b"\r\n0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(b" 200" in self._head and b"data: [DONE]" in self._tail)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(False)


@dataclass
class Report:
    streams: int
    failures: int
    chunks: int
    seconds: float
    latencies_ms: list[float] = field(repr=False)
    """Sorted; from the engine's write to the client's read."""

    def percentile(self, share: float) -> float:
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]

    def __str__(self) -> str:
        p50, p90, p99, top = (self.percentile(share) for share in (0.5, 0.9, 0.99, 1.0))
        return (
            f"{self.streams} streams, {self.failures} failures, {self.chunks} chunks in {self.seconds:.1f} s, "
            f"latency ms p50 {p50:.2f} p90 {p90:.2f} p99 {p99:.2f} max {top:.2f}"
        )


async def drive(urls: list[str], streams: int, chunks: int, *, ramp: float = 0.0, within: float = 60.0) -> Report:
    """Opens `streams` streams over `ramp` seconds, spread over `urls`; each must bring exactly `chunks` chunks."""
    latencies: list[int] = []
    started = time.monotonic()
    loop = asyncio.get_running_loop()

    async def one(index: int) -> bool:
        await asyncio.sleep(ramp * index / streams)
        host, _, port = urls[index % len(urls)].removeprefix("http://").partition(":")
        transport, client = await loop.create_connection(lambda: ClientProtocol(latencies), host, int(port))
        try:
            return await asyncio.wait_for(client.ended, within) and client.chunks == chunks
        finally:
            transport.close()

    results = await asyncio.gather(*(one(index) for index in range(streams)), return_exceptions=True)
    failures = sum(result is not True for result in results)
    seconds = time.monotonic() - started
    return Report(streams, failures, len(latencies), seconds, sorted(ns / 1e6 for ns in latencies))


@contextlib.asynccontextmanager
async def engines(
    count: int, chunks: int, interval: float, folder: Path, *, core: int | None = None
) -> AsyncIterator[list[str]]:
    with contextlib.ExitStack() as stack:
        files = [folder / f"engine-{index}" for index in range(count)]
        for file in files:
            args = ("--engine", str(file), "--chunks", str(chunks), "--interval", str(interval))
            stack.enter_context(python("-m", "gateway.load", *args, core=core))
        yield [await written(file) for file in files]


async def _engine(file: Path, chunks: int, interval: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineProtocol(chunks, interval), "127.0.0.1", 0, backlog=2048)
    file.write_text(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")  # noqa: ASYNC240
    await server.serve_forever()


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(streams: int, chunks_per_second: int, seconds: float, folder: Path) -> None:
    interval = streams / chunks_per_second
    chunks = int(seconds / interval)
    gateway_core, other_core = 0, 1
    os.sched_setaffinity(0, {other_core})
    async with engines(2, chunks, interval, folder, core=other_core) as urls:
        direct = await drive(urls, streams, chunks, ramp=RAMP_S)
        print("direct: ", direct)
        flags = GatewayFlags(host="127.0.0.1", port=0, metrics_port=0, decode=tuple(urls), log_format="json")
        async with gateway_process(flags, folder, core=gateway_core) as gateway:
            before = _cpu_seconds(gateway.process.pid)
            through = await drive([gateway.url], streams, chunks, ramp=RAMP_S)
            cpu = _cpu_seconds(gateway.process.pid) - before
    print("gateway:", through)
    print(
        f"added: p50 {through.percentile(0.5) - direct.percentile(0.5):.2f} ms, "
        f"p99 {through.percentile(0.99) - direct.percentile(0.99):.2f} ms; gateway CPU "
        f"{100 * cpu / through.seconds:.0f}% of its core, {1e6 * cpu / through.chunks:.0f} us a chunk, all in"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--chunks-per-second", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--interval", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        uvloop.run(_engine(Path(args.engine), args.chunks, args.interval))
    else:
        with tempfile.TemporaryDirectory() as folder:
            uvloop.run(measure(args.streams, args.chunks_per_second, args.seconds, Path(folder)))


if __name__ == "__main__":
    main()
