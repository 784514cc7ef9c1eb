"""Bodies that are no request, and requests to nowhere: refused in the shape of OpenAI, and quickly."""

from __future__ import annotations

import io
import json
import time
import zlib
from typing import Any

import aiohttp
import pytest
from server.refusals import CHAT, HELLO, TEXT, nested, refused, user
from support.api_server import Server
from support.raw_http import half_a_body, no_http
from tandem_http.body import Pace
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "tiny", "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 500 + b"1" + b"}" * 500,
    ],
)
async def test_bodies_that_are_no_request(http: aiohttp.ClientSession, raw: bytes) -> None:
    async with http.post(CHAT, data=raw, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_deep_nesting_everywhere(http: aiohttp.ClientSession) -> None:
    for field in ("messages", "tools", "logit_bias", "metadata", "stop", "response_format", "nonsense"):
        body = json.dumps({"model": "tiny", "messages": HELLO} | {field: nested(900)})
        async with http.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as response:
            assert response.status == (200 if field == "metadata" else 400), field


async def test_ten_megabytes(http: aiohttp.ClientSession) -> None:
    body = io.BytesIO(b'{"model":"tiny","prompt":"' + b"x" * 10_000_000 + b'"}')
    async with http.post(TEXT, data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"


async def test_a_body_that_does_not_come(server: Server) -> None:
    server.pod.pace = Pace(pause_s=0.2)
    async with half_a_body("127.0.0.1", server.port, CHAT) as answer:
        status, body = await answer
    assert (status, json.loads(body)["error"]["code"]) == (408, "body_timeout")


async def test_what_is_no_http(server: Server) -> None:
    status, body = await no_http("127.0.0.1", server.port)
    assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_request")


async def test_an_expectation_that_no_server_has(http: aiohttp.ClientSession) -> None:
    """It is refused before the request has an id, whose lack closed the connection without a word."""
    async with http.post(CHAT, json={}, headers={"Expect": "200-ok"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (417, "expectation_failed")


async def test_compressed_bodies(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    async with http.post(TEXT, data=zlib.compress(b" " * 50_000_000), headers=headers) as response:
        assert response.status == 413
    async with http.post(TEXT, data=b"not deflate", headers=headers) as response:
        assert response.status == 400
        assert "error" in await response.json()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_wrong_content_type(http: aiohttp.ClientSession, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    skip = ["Content-Type"] if content_type is None else []
    async with http.post(CHAT, data=b"{}", headers=headers, skip_auto_headers=skip) as response:
        assert response.status == 415
        assert "application/json" in (await response.json())["error"]["message"]


async def test_unknown_route_and_method(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/images", json={}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
    async with http.get(CHAT) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")
        assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "x"}] * 200_000},
        {"messages": user([{"a": 1}] * 500_000)},
        {"messages": [{"role": "user", "content": "x", **{f"k{i}": 1 for i in range(200_000)}}]},
        {"logit_bias": {str(i): "x" for i in range(200_000)}},
        {f"k{i}": 1 for i in range(200_000)},
    ],
    ids=["messages", "parts", "message-fields", "logit-bias", "fields"],
)
def test_a_body_full_of_errors_is_refused_quickly(fields: dict[str, Any]) -> None:
    """Collecting every error of such a body took ten seconds of the event loop."""
    started = time.process_time()
    with pytest.raises(RequestError):
        parse(ChatRequest, {"model": "tiny", "messages": HELLO, **fields})
    assert time.process_time() - started < 2.0


async def test_errors_quote_only_the_beginning_of_long_values(http: aiohttp.ClientSession) -> None:
    for fields in ({"k" * 500_000: 1}, {"model": "m" * 500_000}):
        _, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
        assert len(json.dumps(error)) < 5000
