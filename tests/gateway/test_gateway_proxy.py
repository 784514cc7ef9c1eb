"""Answers through a gateway, from fake engines, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import openai
import pytest
import uvloop
from aiohttp import web
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.harness import CHAT, gateway_before
from support.raw_http import reset_within_the_answer
from tandem_contract import headers, ticket
from yarl import URL

KEY = "k" * 32


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "ticket-keys").write_text(KEY + "\n")
    return str(tmp_path / "ticket-keys")


def test_a_client_that_resets_its_connection_has_left(caplog: pytest.LogCaptureFixture) -> None:
    """On uvloop each counted as a 500 of the gateway's, with a traceback: the next write met the reset before aiohttp
    had told of it."""

    async def run() -> None:
        async with FakeEngine(words=20_000, interval=0.0002) as engine, gateway_before(engine) as client:
            body = b'{"model": "m", "stream": true, "messages": []}'
            await reset_within_the_answer("127.0.0.1", client.gateway.api_port, CHAT, body)

            async def counted() -> bool:
                return await client.metric(f'tandem_gateway_requests_total{{code="499",route="{CHAT}"}}') == 1

            await eventually(counted)
            await asyncio.wait_for(engine.cancelled.wait(), 5)

    uvloop.run(run())
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


async def test_bodies_and_streams_pass_byte_for_byte() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        body = b'{ "model":"m",\t"stream" : true,"messages":[ {"role":"user","content":"\\u00e4"} ], "extra": 1.50 }'
        answer = await client.post(CHAT, data=body, headers={"Content-Type": "application/json"})
        assert answer.status == 200
        assert answer.body == stream_bytes(engine.words)
        assert engine.seen[-1].body == body
        assert answer.headers["X-Engine"] == "fake"
        assert answer.headers["Content-Type"] == "text/event-stream"
        plain = await client.chat()
        assert json.loads(plain.body) == {"path": CHAT, "words": 5}


async def test_the_openai_client_streams_through_the_gateway() -> None:
    async with FakeEngine(words=3) as engine, gateway_before(engine) as client:
        async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="none") as api:
            stream = await api.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert [model.id async for model in await api.models.list()] == ["m"]
    assert text == " w0 w1 w2"


async def test_every_route_reaches_a_decode_pod() -> None:
    prefill = FakeEngine(status("p", "prefill"))
    async with prefill, FakeEngine() as decode, gateway_before(decode, prefill) as client:
        for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
            assert (await client.post(path, json={"model": "m", "prompt": "x"})).status == 200
        assert (await client.get("/openapi.json")).status == 200
        assert [seen.path for seen in decode.seen] == [
            CHAT,
            "/v1/completions",
            "/tokenize",
            "/detokenize",
            "/openapi.json",
        ]
        assert prefill.seen == []


async def test_a_client_cannot_speak_our_headers(key_file: str) -> None:
    """A forged ticket would let a client name any address as its prefill pod."""
    prefill = FakeEngine(status("p", "prefill", handoff_port=8123, incarnation="77"))
    async with prefill, FakeEngine() as decode, gateway_before(decode, prefill, ticket_key_file=key_file) as client:
        forged = {
            headers.TICKET: "v1.forged.ticket",
            "x-tandem-anything": "1",
            headers.TIMING: "1",
            headers.REQUEST_ID: "mine-1",
        }
        answer = await client.chat(headers=forged)
        sent = decode.seen[-1].headers
        signed = ticket.verify(sent[headers.TICKET], [KEY.encode()])
        assert "v1.forged.ticket" not in sent.values()
        assert "x-tandem-anything" not in {name.lower() for name in sent}
        assert sent[headers.TIMING] == "1"
        assert sent[headers.REQUEST_ID] == answer.headers[headers.REQUEST_ID] == signed.request_id == "mine-1"
        assert (signed.prefill_host, signed.prefill_port, signed.prefill_incarnation) == ("127.0.0.1", 8123, "77")
        assert answer.headers[headers.PODS] == f"decode={decode.name}; prefill={prefill.name}"
        assert not [value for value in answer.headers.values() if prefill.key in value or decode.key in value]
        await client.post("/tokenize", json={"model": "m", "prompt": "x"}, headers=forged)
        assert headers.TICKET not in decode.seen[-1].headers


async def test_a_second_prefill_pod_gets_a_ticket_of_its_own(key_file: str) -> None:
    first, second = FakeEngine(status("p1", "prefill")), FakeEngine(status("p2", "prefill"))
    async with first, second, FakeEngine() as decode:
        async with gateway_before(decode, first, second, ticket_key_file=key_file) as client:
            answer = await client.chat()
            texts = decode.seen[-1].headers[headers.TICKET].split(",")
            tickets = [ticket.verify(text, [KEY.encode()]) for text in texts]
            assert len({one.nonce for one in tickets}) == 2
            assert len({one.request_id for one in tickets}) == 1
            assert answer.headers[headers.PODS].startswith(f"decode={decode.name}; prefill=")


async def test_without_ticket_keys_nobody_is_asked_to_prefill() -> None:
    async with FakeEngine(status("p", "prefill")) as prefill, FakeEngine() as decode:
        async with gateway_before(decode, prefill) as client:
            assert (await client.chat()).headers[headers.PODS] == f"decode={decode.name}"
            assert headers.TICKET not in decode.seen[-1].headers


async def test_no_ticket_for_a_prefill_pod_of_another_layout(key_file: str) -> None:
    prefill = FakeEngine(status("p", "prefill", fingerprint="other"))
    async with prefill, FakeEngine() as decode, gateway_before(decode, prefill, ticket_key_file=key_file) as client:
        answer = await client.chat()
        assert headers.TICKET not in decode.seen[-1].headers
        assert answer.headers[headers.PODS] == f"decode={decode.name}"


async def test_a_pod_that_dies_mid_stream_ends_the_stream_with_an_error_event() -> None:
    async with FakeEngine(words=5, die_after=3) as dying, gateway_before(dying) as client:
        answer = await client.chat(stream=True)
    *words, error = answer.body.strip().split(b"\n\n")
    assert len(words) == 3
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "pod_failed"
    assert b"[DONE]" not in answer.body


async def test_a_stream_without_done_is_a_failed_stream() -> None:
    """A pod that ends a stream early but politely would otherwise give a silent, truncated 200."""
    async with FakeEngine(omit_done=True) as engine, gateway_before(engine) as client:
        answer = await client.chat(stream=True)
    assert b'data: {"error"' in answer.body
    assert b"[DONE]" not in answer.body


async def test_errors_of_pods_pass_through() -> None:
    refusal = web.json_response({"error": {"message": "temperature must be at most 2"}}, status=400)
    async with FakeEngine(answer=refusal) as engine, gateway_before(engine) as client:
        answer = await client.chat(temperature=9)
        assert (answer.status, answer.body) == (400, refusal.body)
        assert len(engine.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_pods_work_at_once(stream: bool) -> None:
    async with FakeEngine(hold=asyncio.Event()) as engine, gateway_before(engine) as client:
        asking = asyncio.create_task(client.chat(stream=stream))
        await engine.arrived.wait()
        asking.cancel()
        await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_a_client_that_leaves_mid_stream_cancels_the_pods_work() -> None:
    async with FakeEngine(hold_after_first=asyncio.Event()) as engine, gateway_before(engine) as client:
        body = {"model": "m", "stream": True, "messages": []}
        async with client.session.post(client.url + CHAT, json=body) as answer:
            await answer.content.readany()
        await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_a_silent_pod_runs_into_the_stall_timeout() -> None:
    async with FakeEngine(hold_after_first=asyncio.Event()) as engine:
        async with gateway_before(engine, stall_timeout=0.2) as client:
            answer = await client.chat(stream=True)
    assert b'"code":"timeout"' in answer.body
    async with FakeEngine(hold=asyncio.Event()) as engine:
        async with gateway_before(engine, stall_timeout=0.1, request_timeout=0.4) as client:
            began = time.monotonic()
            assert (await client.chat()).status == 504
            assert time.monotonic() - began >= 0.4, "an answer that has not begun is no stalled one"


async def test_a_long_stream_ends_at_the_request_timeout_not_before() -> None:
    async with FakeEngine(words=200, interval=0.01) as engine:
        async with gateway_before(engine, stall_timeout=0.3, request_timeout=0.8) as client:
            answer = await client.chat(stream=True)
    assert b"request timeout" in answer.body
    assert answer.body.count(b"data:") > 31, "a stream that keeps coming outlives the stall timeout"


async def test_unknown_models_and_absent_pods() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        answer = await client.chat(model="gpt-9")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "model_not_found")
        engine.status = status(ready=False)
        await eventually(lambda: _not_ready(client))
        answer = await client.chat()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await client.chat(model="gpt-9")).status == 404


async def test_models_are_the_union() -> None:
    async with FakeEngine(status(models=("a", "b"))) as one, FakeEngine(status(models=("b", "c"))) as two:
        async with gateway_before(one, two) as client:
            listed = json.loads((await client.get("/v1/models")).body)
            assert sorted(model["id"] for model in listed["data"]) == ["a", "b", "c"]
            assert (await client.chat(model="c")).headers[headers.PODS] == f"decode={two.name}"


async def test_the_openai_client_retrieves_models_whose_names_hold_slashes() -> None:
    """The route was missing though the pods' /openapi.json, which the gateway hands out, names it."""
    async with FakeEngine(status(models=("m", "org/name"))) as engine, gateway_before(engine) as client:
        async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="none", max_retries=0) as api:
            for name in ("m", "org/name"):
                assert (await api.models.retrieve(name)).id == name
            with pytest.raises(openai.NotFoundError) as refused:
                await api.models.retrieve("org/other")
        assert refused.value.code == "model_not_found"
        for path in ("org/name", "org%2Fname"):
            listed = json.loads((await client.get("/v1/models")).body)["data"]
            answer = await client.session.get(URL(f"{client.url}/v1/models/{path}", encoded=True))
            assert await answer.json() == listed[1]
        assert engine.seen == [], "the gateway knows the names itself"


async def test_a_restarted_pod_releases_requests_to_its_former_self() -> None:
    """Node loss gives no reset: without the new incarnation a request would wait out the stall timeout."""
    async with FakeEngine(hold=asyncio.Event()) as engine, FakeEngine(status(ready=False)) as spare:
        async with gateway_before(engine, spare) as client:
            asking = asyncio.create_task(client.chat())
            await engine.arrived.wait()
            spare.status = status()
            await eventually(lambda: _ready_pods(client, 2))
            engine.status = status(incarnation="2")
            assert (await asking).headers[headers.PODS] == f"decode={spare.name}"


async def _not_ready(client: object) -> bool:
    return (await client.get("/readyz")).status == 503  # type: ignore[attr-defined, no-any-return]


async def _ready_pods(client: object, count: int) -> bool:
    sample = 'tandem_gateway_pods{role="decode",state="ready"}'
    return await client.metric(sample) == count  # type: ignore[attr-defined, no-any-return]


async def test_connections_to_pods_are_kept_for_the_next_request() -> None:
    async with FakeEngine() as engine, gateway_before(engine, status_interval=60.0) as client:
        for stream in (False, True, False, True):
            assert (await client.chat(stream=stream)).status == 200
        assert len({seen.peer for seen in engine.seen}) == 1


async def test_a_long_stream_arrives_whole_at_a_slow_reader() -> None:
    words = 50_000
    async with FakeEngine(words=words) as engine, gateway_before(engine) as client:
        body = {"model": "m", "stream": True, "messages": []}
        async with aiohttp.ClientSession(read_bufsize=1024) as session:
            async with session.post(client.url + CHAT, json=body) as answer:
                received = b"".join([chunk async for chunk in answer.content.iter_any()])
    assert received == stream_bytes(words)
