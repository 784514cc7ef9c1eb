"""Every wrong request is an OpenAI-shaped error that names the field, and never a 5xx."""

from __future__ import annotations

import io
import json
import time
import zlib
from typing import Any

import aiohttp
import pytest
from support import tiny_tokenizer
from support.api_server import Server
from support.raw_http import half_a_body, no_http
from tandem_http.body import Pace
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.text.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


async def refused(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with http.post(path, json=body) as response:
        answer = await response.json()
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["message"]
        return response.status, answer["error"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": user(7)}, "messages[0].content"),
        ({"messages": user([])}, "messages[0].content"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 255}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**40}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [400]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"400": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(token): 0 for token in range(1025)}}, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs.mood"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": nested(600)}, "chat_template_kwargs"),
        ({"priority": 2**40}, "priority"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL]}, "tools"),  # the tiny model's template has none
        ({"tools": [TOOL, TOOL]}, None),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "no spaces"}}},
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"store": 0.0}, "store"),
        ({"reasoning_effort": "low", "thinking_budget": 5}, "reasoning_effort"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"chat_template_kwargs": {"thinking_budget": "5"}}, None),
        ({"guided_json": []}, "guided_json"),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
        ({"model": 7}, "model"),
    ],
)
async def test_chat_fields(http: aiohttp.ClientSession, fields: dict[str, Any], param: str | None) -> None:
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    if param is not None and "." not in param and "[" not in param:
        assert param in error["message"] or error["code"] == "context_length_exceeded"


LARGE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4000)}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LARGE}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": LARGE}}, "structured_outputs.json"),
        ({"guided_json": json.dumps(LARGE)}, "guided_json"),
        ({"guided_choice": ["x" * 70_000]}, "guided_choice"),
    ],
)
async def test_sources_of_grammars_that_are_too_large(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    """Symptom: a schema of 6.6 MiB held the event loop for a second. Cause: its size was looked at by the engine only,
    once it was converted."""
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"], error["code"]) == (400, param, "invalid_grammar")
    assert param in error["message"]
    assert "at most 65536" in error["message"]


def test_functions_are_too_large_together() -> None:
    """As above; each of the 128 may be within the bound."""
    half = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}
    tools = [{"type": "function", "function": {"name": name, "parameters": half}} for name in "abc"]
    body = {"model": "tiny", "messages": HELLO, "tools": tools, "tool_choice": "required"}
    request = parse(ChatRequest, body)
    with pytest.raises(RequestError, match=r"'tools': has .* at most 65536") as error:
        request.call_grammar(beside_format=False)
    assert error.value.param == "tools"
    free = parse(ChatRequest, body | {"tool_choice": "auto"})
    assert free.call_grammar(beside_format=False) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [400]}, "prompt"),
        ({"prompt": [10**12]}, "prompt[0]"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
    ],
)
async def test_completion_fields(http: aiohttp.ClientSession, fields: dict[str, Any], param: str | None) -> None:
    status, error = await refused(http, TEXT, {"model": "tiny", **fields})
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CHAT, {"stop": 7}, "'stop': Input should be a valid string or a valid list"),
        (CHAT, {"messages": user(7)}, "'messages[0].content': Input should be a valid string or a valid list"),
        (TEXT, {"prompt": 7}, "'prompt': Input should be a valid string or a valid list"),
        (TEXT, {"prompt": [1, "a"]}, "'prompt[1]': Input should be a valid integer or a valid list"),
        (TEXT, {"prompt": ["a", 1]}, "'prompt[1]': Input should be a valid string or a valid list"),
    ],
)
async def test_errors_say_all_that_a_field_may_be(
    http: aiohttp.ClientSession, path: str, fields: dict[str, Any], message: str
) -> None:
    """Symptom: `"stop": 7` was answered with 'should be a valid string', as if a list were none."""
    given = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    status, error = await refused(http, path, {"model": "tiny"} | given | fields)
    assert (status, error["message"]) == (400, message)


@pytest.mark.parametrize(
    ("fields"),
    [
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"tools": None, "response_format": None, "audio": None, "n": None, "stop": None, "stream_options": None},
        {"logit_bias": {"7": -100}, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "cache_salt": "t"},
        {"stop_token_ids": [5], "ignore_eos": True, "min_tokens": 2, "priority": -1, "seed": -(2**63)},
    ],
)
async def test_fields_that_are_fine(http: aiohttp.ClientSession, fields: dict[str, Any]) -> None:
    async with http.post(CHAT, json={"model": "tiny", "messages": HELLO, **fields}) as response:
        assert response.status == 200, await response.text()


async def test_too_long_a_prompt_names_both_lengths(http: aiohttp.ClientSession) -> None:
    status, error = await refused(http, TEXT, {"model": "tiny", "prompt": [7] * 256})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "the prompt has 256 tokens" in error["message"]
    assert "context of 256 tokens" in error["message"]
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": user("word " * 3000)})
    assert (status, error["param"]) == (400, "messages")


async def test_unknown_model(http: aiohttp.ClientSession) -> None:
    status, error = await refused(http, CHAT, {"model": "gpt-4", "messages": HELLO})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


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
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": HELLO}),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {}}),
        ("/detokenize", {"tokens": [400]}),
        ("/detokenize", {"tokens": ["1"]}),
        ("/detokenize", {"tokens": [10**20]}),
    ],
)
async def test_token_endpoints(http: aiohttp.ClientSession, path: str, body: Any) -> None:
    status, _ = await refused(http, path, body)
    assert status == 400


async def test_a_model_without_a_template(server: Server, http: aiohttp.ClientSession, tmp_path: Any) -> None:
    plain = Tokenizer(str(tiny_tokenizer.build(tmp_path, chat_template=None)))
    server.pod.loaded = LoadedModel(server.engine, plain, splits_reasoning=False)
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO})
    assert status == 400
    assert "no chat template" in error["message"]


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
