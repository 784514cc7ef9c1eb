"""The gateway's spans, kept in memory; its pods are fakes, the sockets real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.harness import CHAT, Client, gateway_before
from gateway.live_engine import LiveEngine
from support.spans import CALLER, TRACE_ID, TRACEPARENT, Recorder, Seen, Spans

ROUTE = f"POST {CHAT}"
TRACED = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


@asynccontextmanager
async def traced(recorder: Recorder, *engines: FakeEngine, **changes: Any) -> AsyncIterator[Client]:
    async with recorder.tracing("gateway") as tracing:
        async with gateway_before(*engines, tracing=tracing, **changes) as client:
            yield client


def request_of(spans: Spans) -> Seen:
    return spans.one("gateway", ROUTE)


def attempts_of(spans: Spans) -> list[str | None]:
    return [span.error for span in spans.all("gateway", "attempt")]


async def test_a_request_and_its_attempt_belong_to_the_clients_trace() -> None:
    recorder = Recorder()
    async with FakeEngine() as engine, traced(recorder, engine) as client:
        answer = await client.chat(stream=True, headers=TRACED)
        assert answer.body == stream_bytes(5)
        request_id = answer.headers["X-Request-Id"]
    spans = recorder.spans
    spans.check_tree(CALLER)
    request, attempt = request_of(spans), spans.one("gateway", "attempt")
    assert (request.trace_id, request.kind, request.error, request.state) == (TRACE_ID, "server", None, "vendor=1")
    assert request.attributes["gen_ai.request.model"] == "m"
    assert request.attributes["http.route"] == CHAT
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["tandem.request_id"] == request_id
    first_chunk = request.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first_chunk * 1e9 <= request.ended - request.started
    assert (attempt.kind, attempt.parent_id, attempt.error) == ("client", request.span_id, None)
    assert attempt.attributes["server.port"] == int(engine.url.rpartition(":")[2])
    assert "http.request.resend_count" not in attempt.attributes
    sent = engine.posts()[0].headers
    assert sent["traceparent"][:-2] == f"00-{TRACE_ID}-{attempt.span_id}-", "what the pod does belongs to the attempt"
    assert sent["tracestate"] == "vendor=1"


@pytest.mark.parametrize("given", [None, "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
async def test_without_a_sound_traceparent_a_trace_begins_here(given: str | None) -> None:
    recorder = Recorder()
    headers = {"tracestate": "vendor=1"} | ({"traceparent": given} if given else {})
    async with FakeEngine() as engine, traced(recorder, engine) as client:
        assert (await client.chat(headers=headers)).status == 200
    request = request_of(recorder.spans)
    assert request.parent_id == ""
    sent = engine.posts()[0].headers
    assert sent["traceparent"].split("-")[1] == request.trace_id
    assert "tracestate" not in sent, "it belongs to the traceparent that was not taken"
    assert "gen_ai.response.time_to_first_chunk" not in request.attributes, "the answer was no stream"


async def test_a_client_that_does_not_sample_is_obeyed() -> None:
    recorder = Recorder()
    async with FakeEngine() as engine, traced(recorder, engine) as client:
        assert (await client.chat(headers={"traceparent": f"00-{TRACE_ID}-{CALLER}-00"})).status == 200
    assert recorder.spans.seen == []
    _, trace_id, _, flags = engine.posts()[0].headers["traceparent"].split("-")
    assert trace_id == TRACE_ID
    assert int(flags, 16) & 1 == 0, "pods must not record either"


async def test_without_tracing_the_clients_headers_pass_through() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        assert (await client.chat(headers=TRACED)).status == 200
    assert {name: engine.posts()[0].headers[name] for name in TRACED} == TRACED


async def test_a_second_attempt_is_a_second_span() -> None:
    busy = web.json_response({"error": {"message": "full", "code": "engine_overloaded"}}, status=503)
    recorder = Recorder()
    full, free = FakeEngine(answer=busy), FakeEngine(status("free", running=50))
    async with full, free, traced(recorder, full, free, strategy="LeastLoaded") as client:
        assert (await client.chat()).status == 200
    spans = recorder.spans
    assert request_of(spans).error is None
    first, second = spans.all("gateway", "attempt")
    assert (first.error, first.attributes["http.response.status_code"]) == ("busy", 503)
    assert (second.error, second.attributes["http.request.resend_count"]) == (None, 1)
    assert first.ended <= second.started


async def test_a_stream_that_goes_on_elsewhere_is_one_good_request(keys: dict[str, str]) -> None:
    recorder = Recorder()
    breaks, resumed_in = [7], list[str]()
    first, second = (LiveEngine(words=40, break_after=breaks, resumed_in=resumed_in) for _ in range(2))
    async with first, second, traced(recorder, first, second, **keys) as client:
        assert (await client.chat(stream=True, headers=TRACED)).body == stream_bytes(40)
    spans = recorder.spans
    spans.check_tree(CALLER)
    assert request_of(spans).error is None
    assert spans.below(request_of(spans)) == ["gateway/attempt", "gateway/resume"]
    assert attempts_of(spans) == ["broken"]
    resume = spans.one("gateway", "resume")
    assert resume.error is None
    assert resume.attributes["tandem.resume.cause"] == "broken"
    assert resume.attributes["tandem.resume.records"] == 7
    assert [traceparent.split("-")[2] for traceparent in resumed_in] == [resume.span_id]


async def test_a_stream_that_is_lost_is_a_failed_request_for_all_its_200(keys: dict[str, str]) -> None:
    recorder = Recorder()
    fleet = [LiveEngine(status(f"d{index}"), words=20, break_after=[3]) for index in range(2)]
    async with fleet[0], fleet[1], traced(recorder, *fleet, max_resumes=1, **keys) as client:
        assert b'"code":"pod_failed"' in (await client.chat(stream=True)).body
    spans = recorder.spans
    request = request_of(spans)
    assert (request.error, request.attributes["http.response.status_code"]) == ("pod_failed", 200)
    assert "failed" in request.message
    assert attempts_of(spans) == ["broken"]
    assert spans.one("gateway", "resume").error == "broken"


async def test_a_request_that_nobody_takes_fails_by_its_name() -> None:
    recorder = Recorder()
    async with traced(recorder, wait_ready=False) as client:
        assert (await client.chat()).status == 503
    assert request_of(recorder.spans).error == "no_pod_available"
    assert attempts_of(recorder.spans) == []


async def test_a_clients_own_mistake_is_no_failure_of_ours() -> None:
    recorder = Recorder()
    async with FakeEngine() as engine, traced(recorder, engine) as client:
        assert (await client.post(CHAT, data=b"{")).status == 400
        engine.answer = web.json_response({"error": {"message": "no"}}, status=404)
        assert (await client.chat()).status == 404
    spans = recorder.spans
    statuses = [span.attributes["http.response.status_code"] for span in spans.all("gateway", ROUTE)]
    assert statuses == [400, 404]
    assert [span.error for span in spans.all("gateway", ROUTE)] == [None, None]
    assert attempts_of(spans) == ["404"], "as HTTP's conventions have it for clients"


async def test_a_client_that_leaves_is_named() -> None:
    recorder = Recorder()
    async with FakeEngine(hold=asyncio.Event()) as engine, traced(recorder, engine) as client:
        asking = asyncio.create_task(client.chat())
        await engine.arrived.wait()
        asking.cancel()
        await engine.cancelled.wait()
    assert request_of(recorder.spans).error == "client_closed"
    assert attempts_of(recorder.spans) == ["client_closed"]


async def test_probes_and_pages_leave_no_spans() -> None:
    recorder = Recorder()
    async with FakeEngine() as engine, traced(recorder, engine) as client:
        for path in ("/readyz", "/v1/models", "/ui", "/nowhere"):
            await client.get(path)
        await client.post("/nowhere", data=b"{}")
    assert recorder.spans.seen == []
