"""What the gateway decides before any pod is asked: keys, ids, limits, shapes of errors."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path

import pytest
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine
from gateway.harness import CHAT, Answer, gateway_before
from support.raw_http import half_a_body, no_http
from tandem_contract import headers
from tandem_http.body import Pace


def _error(answer: Answer) -> dict[str, str]:
    error: dict[str, str] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_api_keys_are_checked_and_follow_their_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("first\nsecond\n")
    async with FakeEngine() as engine, gateway_before(engine, api_key_file=str(path)) as client:
        for key in ("first", "second"):
            assert (await client.chat(headers=_bearer(key))).status == 200
        refused = await client.chat(headers=_bearer("third"))
        assert (refused.status, _error(refused)["code"]) == (401, "invalid_api_key")
        assert (await client.chat()).status == 401
        assert (await client.get("/v1/models")).status == 401
        assert (await client.get("/livez")).status == 200
        path.write_text("third-key\n")
        assert (await client.chat(headers=_bearer("third-key"))).status == 200
        assert (await client.chat(headers=_bearer("first"))).status == 401
        assert len(engine.seen) == 3


async def test_request_ids_are_kept_where_sane_and_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tandem_gateway")
    async with FakeEngine() as engine, gateway_before(engine) as client:
        kept = await client.chat(headers={headers.REQUEST_ID: "abc-1.2:3_4"})
        assert kept.headers[headers.REQUEST_ID] == engine.seen[-1].headers[headers.REQUEST_ID] == "abc-1.2:3_4"
        for bad in ("a b", "x" * 129, "é"):
            made = await client.chat(headers={headers.REQUEST_ID: bad})
            assert made.headers[headers.REQUEST_ID].startswith("req-")
        failed = await client.post(CHAT, data=b"{")
        assert failed.headers[headers.REQUEST_ID].startswith("req-")
    logged = [record.fields["request_id"] for record in caplog.records if record.name == "tandem_gateway.access"]  # type: ignore[attr-defined]
    assert "abc-1.2:3_4" in logged
    assert failed.headers[headers.REQUEST_ID] in logged


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_the_limit_is_a_413_not_a_reset(chunked: bool) -> None:
    async def parts() -> object:
        for _ in range(10):
            yield b"x" * 1_000_000

    async with FakeEngine() as engine, gateway_before(engine) as client:
        answer = await client.post(CHAT, data=parts() if chunked else io.BytesIO(b"x" * 10_000_000))
        assert (answer.status, _error(answer)["code"]) == (413, "request_too_large")
        assert engine.seen == []


async def test_a_10_mb_body_passes_where_it_is_allowed() -> None:
    async with FakeEngine() as engine, gateway_before(engine, max_body_bytes=16 << 20) as client:
        body = b'{"model": "m", "prompt": "' + b"x" * 10_000_000 + b'"}'
        assert (await client.post(CHAT, data=io.BytesIO(body))).status == 200
        assert engine.seen[0].body == body


async def test_a_body_that_does_not_come_is_a_408_and_holds_no_place() -> None:
    async with (
        FakeEngine() as engine,
        gateway_before(engine, pace=Pace(pause_s=0.2), max_in_flight=1) as client,
        half_a_body("127.0.0.1", client.gateway.api_port, CHAT) as answer,
    ):
        status, body = await answer
        assert (status, json.loads(body)["error"]["code"]) == (408, "body_timeout")
        assert (await client.chat()).status == 200


async def test_what_is_no_http_is_a_400() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        status, body = await no_http("127.0.0.1", client.gateway.api_port)
        assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"])
async def test_what_does_not_call_itself_json_is_a_415(content_type: str) -> None:
    """As an engine pod answers it; the gateway said 400, and that the form was not valid JSON."""
    async with FakeEngine() as engine, gateway_before(engine) as client:
        answer = await client.post(CHAT, data=b"model=m&prompt=a", headers={"Content-Type": content_type})
        assert (answer.status, _error(answer)["code"]) == (415, "unsupported_media_type")
        assert engine.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "messages": [' + b"[" * 500 + b"]" * 500 + b"]}",
        b'{"model": "\xff"}',
        b'{"model": NaN}',
    ],
)
async def test_what_is_no_json_is_a_400(body: bytes) -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        answer = await client.post(CHAT, data=body)
        assert (answer.status, _error(answer)["type"]) == (400, "invalid_request_error")
        assert engine.seen == []


@pytest.mark.parametrize("body", [b"[]", b"3", b'{"model": 3}', b'{"messages": {}}', b'{"model": "m", "messages": 3}'])
async def test_json_that_is_no_request_is_the_pods_to_refuse(body: bytes) -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        await client.post(CHAT, data=body)
        assert [seen.body for seen in engine.seen] == [body]


async def test_errors_have_openai_shape_everywhere() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        assert _error(await client.get("/nowhere"))["code"] == "not_found"
        wrong = await client.get(CHAT)
        assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
        assert _error(wrong)["code"] == "method_not_allowed"
        zipped = await client.post(CHAT, data=b"x", headers={"Content-Encoding": "gzip"})
        assert (zipped.status, _error(zipped)["code"]) == (415, "unsupported_encoding")


async def test_one_request_too_many_is_a_429() -> None:
    async with FakeEngine(hold=asyncio.Event()) as engine, gateway_before(engine, max_in_flight=1) as client:
        asking = asyncio.create_task(client.chat())
        await engine.arrived.wait()
        refused = await client.chat()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert await client.metric("tandem_gateway_requests_in_flight") == 1
        assert engine.hold is not None
        engine.hold.set()
        assert (await asking).status == 200
        assert (await client.chat()).status == 200


async def test_browsers_may_call_only_from_named_origins() -> None:
    ours, other = {"Origin": "https://ours.example"}, {"Origin": "https://other.example"}
    async with FakeEngine() as engine:
        async with gateway_before(engine) as client:
            assert "Access-Control-Allow-Origin" not in (await client.chat(headers=ours)).headers
        async with gateway_before(engine, cors_origin=("https://ours.example",)) as client:
            answer = await client.chat(headers=ours, stream=True)
            assert answer.headers["Access-Control-Allow-Origin"] == "https://ours.example"
            assert "Access-Control-Allow-Origin" not in (await client.chat(headers=other)).headers
            async with client.session.options(client.url + CHAT, headers=ours) as preflight:
                assert preflight.status == 204
                assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


async def test_readiness_and_metrics_on_their_own_port() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        await client.chat()
        for url in (client.url, client.metrics_url):
            async with client.session.get(url + "/readyz") as answer:
                assert answer.status == 200
        assert await client.metric('tandem_gateway_requests_total{code="200",route="/v1/chat/completions"}') == 1
        await engine.stop()
        await eventually(lambda: _unready(client.get("/readyz")))
        assert (await client.get("/livez")).status == 200


async def _unready(asking: object) -> bool:
    return (await asking).status == 503  # type: ignore[misc, no-any-return]
