"""What an answer must keep to (structures, calls, thoughts), asked for wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from server.refusals import CHAT, HELLO, refused
from support import tiny_tokenizer
from support.api_server import Server
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL, TOOL]}, "tools"),
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
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"reasoning_effort": "low", "thinking_budget": 5}, "reasoning_effort"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "enable_thinking"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "chat_template_kwargs.enable_thinking",
        ),
        ({"reasoning_effort": "high", "enable_thinking": False}, "reasoning_effort"),
        ({"reasoning_effort": "xhigh", "chat_template_kwargs": {"enable_thinking": False}}, "reasoning_effort"),
        ({"thinking_budget": 5, "enable_thinking": False}, "thinking_budget"),
        ({"thinking_budget": 5, "chat_template_kwargs": {"thinking_budget": 5}}, "thinking_budget"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"chat_template_kwargs": {"thinking_budget": "5"}}, "chat_template_kwargs.thinking_budget"),
        ({"guided_json": []}, "guided_json"),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
    ],
)
async def test_fields(http: aiohttp.ClientSession, fields: dict[str, Any], param: str | None) -> None:
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"]) == (400, param)
    assert param is None or param.rpartition(".")[2] in error["message"]


async def test_a_template_without_tools(server: Server, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    plain = "{{ messages[0].content }}"
    tokenizer = Tokenizer(str(tiny_tokenizer.build(tmp_path, chat_template=plain)))
    server.pod.loaded = LoadedModel(server.engine, tokenizer, splits_reasoning=False)
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, "tools": [TOOL]})
    assert (status, error["param"]) == (400, "tools")


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
        request.to_conversation().tools.grammar(beside_format=False)
    assert error.value.param == "tools"
    free = parse(ChatRequest, body | {"tool_choice": "auto"})
    assert free.to_conversation().tools.grammar(beside_format=False) is None
