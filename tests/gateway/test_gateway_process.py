"""The gateway as a process: signals, frozen and killed pods, a thousand streams."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from gateway import load
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, stream_bytes
from gateway.processes import GatewayProcess, gateway_command, gateway_process, python, status_becomes, written
from support.collector import Collector
from tandem_contract.flags import GatewayFlags
from tandem_tracing.otel import CLOSE_TIMEOUT_S

pytestmark = pytest.mark.processes
CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "stream": True, "messages": []}


def flags(*urls: str, **changes: object) -> GatewayFlags:
    options: dict[str, object] = {"status_interval": 0.1, "drain_timeout": 10.0} | changes
    return GatewayFlags(host="127.0.0.1", port=0, metrics_port=0, decode=urls, log_format="json", **options)  # type: ignore[arg-type]


async def test_sigterm_lets_streams_end_and_takes_nothing_new(tmp_path: Path) -> None:
    """In-flight streams used to be cut a fixed time after SIGTERM in the field; here they go on until drained."""
    async with FakeEngine(hold_after_first=asyncio.Event()) as engine, aiohttp.ClientSession() as session:
        async with gateway_process(flags(engine.url), tmp_path) as gateway:
            async with session.post(gateway.url + CHAT, json=STREAM) as answer:
                first = await answer.content.readany()
                gateway.process.send_signal(signal.SIGTERM)
                async with session.get(gateway.metrics_url + "/livez") as live:
                    assert live.status == 200
                await status_becomes(gateway.metrics_url + "/readyz", 503)
                async with session.post(gateway.url + CHAT, json=STREAM) as refused:
                    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
                assert engine.hold_after_first is not None
                engine.hold_after_first.set()
                assert first + await answer.read() == stream_bytes(engine.words)
            assert await asyncio.to_thread(gateway.process.wait, 10) == 0


async def test_streams_that_outlast_the_drain_end_with_an_error_event(tmp_path: Path) -> None:
    async with FakeEngine(hold_after_first=asyncio.Event()) as engine, aiohttp.ClientSession() as session:
        async with gateway_process(flags(engine.url, drain_timeout=0.2), tmp_path) as gateway:
            async with session.post(gateway.url + CHAT, json=STREAM) as answer:
                await answer.content.readany()
                gateway.process.send_signal(signal.SIGTERM)
                assert b'"code":"shutting_down"' in await answer.read()
            assert await asyncio.to_thread(gateway.process.wait, 10) == 0


async def test_a_frozen_pod_holds_up_nobody(tmp_path: Path) -> None:
    """SIGSTOP: the kernel goes on accepting connections, only the polls tell."""
    file = tmp_path / "frozen"
    async with FakeEngine() as live, aiohttp.ClientSession() as session:
        with python("-m", "gateway.fake_engine", "--port-file", str(file)) as frozen:
            url = await written(file)
            async with gateway_process(flags(url, live.url, strategy="RoundRobin"), tmp_path) as gateway:
                await _until_pods(session, gateway, ready=2)
                frozen.send_signal(signal.SIGSTOP)

                async def ask() -> tuple[int, float, str]:
                    began = time.monotonic()
                    async with session.post(gateway.url + CHAT, json=STREAM) as answer:
                        await answer.read()
                        return answer.status, time.monotonic() - began, answer.headers["X-Tandem-Pods"]

                answers = await asyncio.gather(*(ask() for _ in range(20)))
                assert {(status, pods) for status, _, pods in answers} == {(200, f"decode={live.name}")}
                assert sorted(seconds for _, seconds, _ in answers)[9] < 1.0, "half of them never saw the frozen pod"
                assert max(seconds for _, seconds, _ in answers) < 15.0
                frozen.send_signal(signal.SIGCONT)
                await _until_pods(session, gateway, ready=2)


async def test_a_killed_pod_ends_its_streams_with_an_error_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "killed"
    async with aiohttp.ClientSession() as session:
        with python("-m", "gateway.fake_engine", "--port-file", str(file), "--words", "100", "--interval", "1") as pod:
            url = await written(file)
            async with gateway_process(flags(url), tmp_path) as gateway:
                async with session.post(gateway.url + CHAT, json=STREAM) as answer:
                    first = await answer.content.readany()
                    pod.kill()
                    rest = await answer.read()
                error = json.loads((first + rest).strip().rpartition(b"\n\n")[2].removeprefix(b"data: "))
                assert error["error"]["code"] == "pod_failed"
                await status_becomes(gateway.url + "/readyz", 503)
                async with session.post(gateway.url + CHAT, json=STREAM) as refused:
                    assert refused.status == 503


async def test_a_thousand_streams_and_no_failure(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        async with load.engines(2, chunks=8, interval=0.25, folder=tmp_path) as urls:
            async with gateway_process(flags(*urls), tmp_path) as gateway:
                report = await load.drive([gateway.url], streams=1000, chunks=8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert report.failures == 0
    assert report.chunks == 8000


@pytest.mark.parametrize("hangs", [False, True])
async def test_the_end_waits_for_the_collector_within_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    with Collector() as collector:
        if hangs:
            collector.answers.clear()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        async with FakeEngine() as engine, aiohttp.ClientSession() as session:
            async with gateway_process(flags(engine.url), tmp_path) as gateway:
                async with session.post(gateway.url + CHAT, json=STREAM) as answer:
                    assert await answer.read() == stream_bytes(engine.words)
                began = time.monotonic()
                gateway.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(gateway.process.wait, 30) == 0
                assert time.monotonic() - began < CLOSE_TIMEOUT_S + 5.0
        sent = collector.spans.names()
    assert sent == ([] if hangs else ["tandem-gateway/POST /v1/chat/completions", "tandem-gateway/attempt"])
    assert ("the collector did not take" in (tmp_path / "gateway.log").read_text()) == hangs


def test_a_busy_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = replace(flags("http://127.0.0.1:9"), port=taken.getsockname()[1])
        log = tmp_path / "log"
        with python(*gateway_command(busy), stderr=log) as gateway:
            assert gateway.wait(20) == 1
    assert f"{busy.port}" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_file_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with python(*gateway_command(replace(flags("http://127.0.0.1:9"), api_key_file="/nowhere")), stderr=log) as gateway:
        assert gateway.wait(20) == 1
    assert log.read_text() == (
        "tandem gateway: --api-key-file /nowhere: there is no such file; write one key per line\n"
    )


async def _until_pods(session: aiohttp.ClientSession, gateway: GatewayProcess, *, ready: int) -> None:
    async def is_so() -> bool:
        async with session.get(gateway.metrics_url + "/metrics") as answer:
            return f'tandem_gateway_pods{{role="decode",state="ready"}} {ready}.0' in await answer.text()

    await eventually(is_so)
