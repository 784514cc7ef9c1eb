"""Wrong fields of chat completions are named; those that ask for nothing are fine."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from server.refusals import CHAT, HELLO, nested, refused, user


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
        ({"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages[1]"),
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
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": 0.0}, "store"),
        ({"model": 7}, "model"),
    ],
)
async def test_chat_fields(http: aiohttp.ClientSession, fields: dict[str, Any], param: str | None) -> None:
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    if param is not None and "." not in param and "[" not in param:
        assert param in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields"),
    [
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"store": False, "service_tier": "auto", "parallel_tool_calls": True, "verbosity": "medium", "top_logprobs": 0},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"tools": None, "response_format": None, "audio": None, "n": None, "stop": None, "stream_options": None},
        {"logit_bias": {"7": -100}, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "cache_salt": "t"},
        {"stop_token_ids": [5], "ignore_eos": True, "min_tokens": 2, "priority": -1, "seed": -(2**63)},
    ],
)
async def test_fields_that_are_fine(http: aiohttp.ClientSession, fields: dict[str, Any]) -> None:
    async with http.post(CHAT, json={"model": "tiny", "messages": HELLO, **fields}) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (
            user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]),
            "messages[0].content[1].type",
        ),
        (user([{"type": "input_audio", "text": "x"}]), "messages[0].content[0].type"),
        ([*HELLO, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "messages[1].content[0].type"),
    ],
)
async def test_what_is_not_text_is_refused_as_such(http: aiohttp.ClientSession, messages: Any, param: str) -> None:
    """It said that a literal should be 'text'."""
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": messages})
    assert (status, error["param"]) == (400, param)
    assert "images, audio and files are not supported" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"verbosity": "low"}, "verbosity"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ],
)
async def test_what_is_not_supported_is_said_so_wherever_it_stands(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    """Inside of objects it said that the input should be None."""
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"]) == (400, param)
    assert error["message"].startswith(f"'{param}' is not supported: ")


async def test_unknown_model(http: aiohttp.ClientSession) -> None:
    status, error = await refused(http, CHAT, {"model": "gpt-4", "messages": HELLO})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
