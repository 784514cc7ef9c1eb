"""Traces of a whole service: gateway, decode and prefill pods as processes of their own, and a collector."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from processes.asking import ask, ask_status, completion_body, random_prompt
from processes.faults import TINY_STEPS
from processes.streaming import Heard
from support.collector import Collector
from support.serving import EnginePod, Fleet, Process
from support.spans import CALLER, Spans
from tandem_contract import headers

pytestmark = pytest.mark.processes

COMPLETIONS = "POST /v1/completions"
GATEWAY, DECODE, PREFILL = "tandem-gateway", "tandem-decode", "tandem-prefill"
DECODED = "text_completion tiny"


@dataclass
class Service:
    gateway: Process
    decodes: list[EnginePod]
    prefill: EnginePod
    collector: Collector


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with Fleet(tiny_model, tmp_path_factory.mktemp("traced"), env) as fleet:
            decodes = [fleet.pod("decode", **TINY_STEPS) for _ in range(2)]
            prefill = fleet.pod("prefill", **TINY_STEPS)
            gateway = fleet.gateway(decodes, [prefill], status_interval=0.1)
            for process in (*decodes, prefill, gateway):
                process.wait_ready()
            yield Service(gateway, decodes, prefill, collector)


def new_trace() -> tuple[str, dict[str, str]]:
    """A trace of the client's own, and the headers that say so."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{CALLER}-01", "tracestate": "vendor=1"}


async def until(service: Service, trace_id: str, *names: tuple[str, str]) -> Spans:
    """The trace, once spans of these services and names are there."""
    return await asyncio.to_thread(
        service.collector.until, trace_id, lambda spans: all(spans.all(*name) for name in names)
    )


async def test_one_request_is_one_tree_from_the_client_to_the_last_page(service: Service) -> None:
    trace_id, traced = new_trace()
    body = completion_body(random_prompt(random.Random(1), 500), max_tokens=12)
    answer = await ask(service.gateway.url, body, headers=traced | {headers.TIMING: "1"})
    where = answer["tandem"]
    assert where["prefill_pod"] is not None
    spans = await until(service, trace_id, (GATEWAY, COMPLETIONS), (DECODE, DECODED), (PREFILL, "prefill"))
    spans.check_tree(CALLER)
    request, attempt = spans.one(GATEWAY, COMPLETIONS), spans.one(GATEWAY, "attempt")
    decode, handoff, prefill = spans.one(DECODE, DECODED), spans.one(DECODE, "handoff"), spans.one(PREFILL, "prefill")
    assert spans.below(request) == [f"{GATEWAY}/attempt"]
    assert spans.below(attempt) == [f"{DECODE}/{DECODED}"]
    assert spans.below(decode) == [f"{DECODE}/{name}" for name in ("handoff", "queue", "first_token", "decode")]
    assert sorted(spans.below(handoff)) == [f"{DECODE}/transfer", f"{PREFILL}/prefill"]
    assert sorted(spans.below(prefill)) == [f"{PREFILL}/{name}" for name in ("compute", "queue", "reserve", "transfer")]
    assert [span.error for span in spans.seen] == [None] * len(spans.seen)
    assert {span.state for span in spans.seen} == {"vendor=1"}
    usage = answer["usage"]
    assert decode.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"] == 500
    assert decode.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 12
    assert decode.attributes["gen_ai.server.time_to_first_token"] == where["ttft_seconds"]
    for service_name in (DECODE, PREFILL):
        moved = spans.one(service_name, "transfer").attributes
        assert moved["tandem.handoff.pages"] == where["handoff_pages"] > 0
        assert moved["tandem.handoff.bytes"] == where["handoff_bytes"]
    assert handoff.ended - handoff.started == pytest.approx(where["handoff_seconds"] * 1e9, rel=0.5)
    # One machine, one clock: what is below begins and ends within.
    for inner, outer in (
        (attempt, request),
        (decode, attempt),
        (handoff, decode),
        (spans.one(DECODE, "decode"), decode),
    ):
        assert outer.started <= inner.started <= inner.ended <= outer.ended + 1e6


async def test_a_client_without_a_trace_gets_one(service: Service) -> None:
    request_id = f"mine-{secrets.token_hex(4)}"
    body = completion_body(random_prompt(random.Random(2), 30), max_tokens=3)
    await ask(service.gateway.url, body, headers={headers.REQUEST_ID: request_id})
    found = re.search(rf"request_id={request_id} .*trace_id=([0-9a-f]{{32}})", service.gateway.log())
    assert found is not None, "the gateway's log line leads to the trace"
    spans = await until(service, found[1], (GATEWAY, COMPLETIONS), (DECODE, DECODED))
    assert spans.one(GATEWAY, COMPLETIONS).parent_id == ""
    assert spans.one(DECODE, DECODED).attributes["tandem.request_id"] == request_id


async def test_a_refused_request_is_told_as_it_was(service: Service) -> None:
    trace_id, traced = new_trace()
    body = completion_body([1, 2, 3], max_tokens=10**6)
    assert (await ask_status(service.gateway.url, body, headers=traced))[0] == 400
    spans = await until(service, trace_id, (GATEWAY, COMPLETIONS), (DECODE, DECODED))
    spans.check_tree(CALLER)
    assert spans.one(GATEWAY, COMPLETIONS).error is None
    assert spans.one(GATEWAY, "attempt").error == "400"
    assert spans.one(DECODE, DECODED).attributes["http.response.status_code"] == 400
    assert spans.below(spans.one(DECODE, DECODED)) == [], "it never came to the engine"


async def test_a_stream_whose_pod_is_killed_is_one_good_request(service: Service) -> None:
    """Last: it costs the service a decode pod."""
    trace_id, traced = new_trace()
    body = completion_body(random_prompt(random.Random(3), 60), max_tokens=2000, stream=True)
    heard = Heard()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client,
        client.post(service.gateway.url + "/v1/completions", json=body, headers=traced) as response,
    ):
        heard.take(await response.content.readline())
        where = response.headers[headers.PODS]
        [victim] = [pod for pod in service.decodes if f"decode={pod.status()['name']};" in f"{where};"]
        victim.signal(signal.SIGKILL)
        async for line in response.content:
            heard.take(line)
    assert (heard.done, heard.error) == (1, None)
    spans = await until(service, trace_id, (GATEWAY, COMPLETIONS), (DECODE, DECODED))
    request = spans.one(GATEWAY, COMPLETIONS)
    assert request.error is None
    assert spans.below(request) == [f"{GATEWAY}/attempt", f"{GATEWAY}/resume"]
    assert spans.one(GATEWAY, "attempt").error in ("broken", "pod_down")
    resume = spans.one(GATEWAY, "resume")
    assert resume.error is None
    survivor = spans.one(DECODE, DECODED)
    assert survivor.parent_id == resume.span_id
    assert survivor.attributes["tandem.resumed_tokens"] > 0
    assert spans.below(spans.one(GATEWAY, "attempt")) == [], "the killed pod had no time to tell"
