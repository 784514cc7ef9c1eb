"""One request's spans, kept in memory: gateway and API servers of a decode and a prefill pod in the test's own loop, on
real sockets, each with its engine in a process of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from processes.asking import completion_body, random_prompt
from processes.faults import TINY_STEPS
from support.ports import free_port
from support.serving import START_PATIENCE_S
from support.spans import CALLER, TRACE_ID, TRACEPARENT, Recorder
from tandem_contract.flags import GatewayFlags, ServeFlags
from tandem_contract.status import Role
from tandem_gateway.endpoints import StaticEndpoints
from tandem_gateway.main import serving
from tandem_runtime.engine.process_client import ProcessEngineClient
from tandem_runtime.server.main import serve_pod

pytestmark = pytest.mark.processes

ROLES: tuple[Role, ...] = ("decode", "prefill")


def start_engine(flags: ServeFlags, name: str) -> ProcessEngineClient:
    client = ProcessEngineClient(flags, name)
    client.start()
    return client


def on_free_ports(flags: ServeFlags, role: Role) -> ServeFlags:
    return replace(flags, role=role, port=free_port(), metrics_port=free_port(), handoff_port=free_port())


@asynccontextmanager
async def pod(flags: ServeFlags, recorder: Recorder) -> AsyncIterator[str]:
    """Its URL."""
    stop = asyncio.Event()
    async with recorder.tracing(flags.role) as tracing:
        serves = asyncio.create_task(serve_pod(flags, start_engine, stop, tracing))
        try:
            yield f"http://{flags.host}:{flags.port}"
        finally:
            stop.set()
            assert await serves == 0


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(START_PATIENCE_S):
        while True:
            try:
                async with session.get(url + "/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


async def test_one_request_is_one_tree(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "ticket-keys"
    keys.write_text("k" * 32 + "\n")
    common = ServeFlags(
        model=str(tiny_model),
        served_model_name=("tiny",),
        host="127.0.0.1",
        kv_data_port=0,
        kv_cache_memory="16MiB",
        ticket_key_file=str(keys),
        local_prefill_max_tokens=0,
        cpu_threads=1,
        drain_timeout=5.0,
        **TINY_STEPS,
    )
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        pods = [pod(on_free_ports(common, role), recorder) for role in ROLES]
        urls = [await stack.enter_async_context(made) for made in pods]
        endpoints = StaticEndpoints(urls[:1], urls[1:])
        flags = GatewayFlags(host="127.0.0.1", port=0, metrics_port=0, ticket_key_file=str(keys), status_interval=0.05)
        for url in urls:
            await ready(session, url)
        tracing = await stack.enter_async_context(recorder.tracing("gateway"))
        gateway = await stack.enter_async_context(serving(flags, endpoints, tracing=tracing))
        await ready(session, f"http://127.0.0.1:{gateway.metrics_port}")
        body = completion_body(random_prompt(random.Random(1), 300), max_tokens=8, stream=True)
        async with session.post(
            f"http://127.0.0.1:{gateway.api_port}/v1/completions", json=body, headers={"traceparent": TRACEPARENT}
        ) as answer:
            assert answer.status == 200
            assert b"[DONE]" in await answer.read()
    spans = recorder.spans
    spans.check_tree(CALLER)
    assert {span.trace_id for span in spans.seen} == {TRACE_ID}
    assert [span.error for span in spans.seen] == [None] * len(spans.seen)
    request = spans.one("gateway", "POST /v1/completions")
    assert spans.below(request) == ["gateway/attempt"]
    assert spans.below(spans.one("gateway", "attempt")) == ["decode/text_completion tiny"]
    decoded = spans.one("decode", "text_completion tiny")
    assert spans.below(decoded) == [f"decode/{name}" for name in ("handoff", "queue", "first_token", "decode")]
    assert sorted(spans.below(spans.one("decode", "handoff"))) == ["decode/transfer", "prefill/prefill"]
    prefill = spans.one("prefill", "prefill")
    assert sorted(spans.below(prefill)) == [f"prefill/{name}" for name in ("compute", "queue", "reserve", "transfer")]
    assert prefill.attributes["tandem.prefill.tokens"] == 299
    assert decoded.attributes["gen_ai.usage.output_tokens"] == 8
