"""What chat templates see of a client's messages."""

from __future__ import annotations

from typing import Any

import pytest
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.messages import for_template


def seen(message: dict[str, Any]) -> dict[str, Any]:
    (one,) = for_template(parse(ChatRequest, {"model": "m", "messages": [message]}).messages)
    return one


def test_plain() -> None:
    assert seen({"role": "user", "content": "hi"}) == {"role": "user", "content": "hi"}
    assert seen({"role": "developer", "content": "hi"}) == {"role": "system", "content": "hi"}


def test_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert seen({"role": "user", "content": parts})["content"] == "a\nb"


def test_what_the_assistant_refused_is_what_it_said() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    assert seen({"role": "assistant", "content": parts})["content"] == "a\nno"
    assert seen({"role": "assistant", "content": None, "refusal": "no"})["content"] == "no"


@pytest.mark.parametrize(
    ("given", "expected"),
    [('{"city": "北京"}', {"city": "北京"}), ({"city": 1}, {"city": 1}), ('{"city": ', '{"city": '), ("", "")],
)
def test_tool_arguments_are_objects(given: object, expected: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": given}}
    said = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    body = {"model": "m", "messages": [said, {"role": "tool", "tool_call_id": "1", "content": "fine"}]}
    message, _ = for_template(parse(ChatRequest, body).messages)
    assert message["content"] == ""
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"]["arguments"] == expected


HELLO = {"role": "user", "content": "hi"}


def calls(*ids: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"role": "assistant", "tool_calls": [{"id": one, "type": "function", "function": function} for one in ids]}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "fine"}


@pytest.mark.parametrize(
    "messages",
    [
        [HELLO, calls("a"), result("a")],
        [HELLO, calls("a", "b"), result("b"), result("a"), HELLO],
        [calls("a"), result("a"), calls("a"), result("a"), {"role": "assistant", "content": "x", "tool_calls": []}],
    ],
)
def test_calls_with_their_results(messages: list[Any]) -> None:
    parse(ChatRequest, {"model": "m", "messages": messages})


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([result("a")], "messages[0]", "follows no message with 'tool_calls'"),
        ([HELLO, calls("a"), result("a"), HELLO, result("a")], "messages[4]", "follows no message"),
        ([HELLO, {"role": "assistant", "content": "x"}, result("a")], "messages[2]", "follows no message"),
        ([HELLO, calls("a"), result("b")], "messages[2].tool_call_id", "'b', which is no call of 'messages[1]'"),
        ([calls("a"), result("a"), calls("b"), result("a")], "messages[3].tool_call_id", "no call of 'messages[2]'"),
        ([HELLO, calls("a")], "messages[1].tool_calls", "none for 'a'"),
        ([calls("b", "a", "a"), result("a"), result("b")], "messages[0].tool_calls[2].id", "as of another call"),
        ([calls("a" * 9_000)], "messages[0].tool_calls", f"none for '{'a' * 64}'"),
        ([HELLO, calls("a"), HELLO, result("a")], "messages[1].tool_calls", "none for 'a'"),
        ([calls("a", "b"), result("a"), calls("c"), result("c")], "messages[0].tool_calls", "none for 'b'"),
    ],
)
def test_calls_without_results_and_results_without_calls(messages: list[Any], param: str, words: str) -> None:
    """They rendered into a prompt that no model has been trained on; OpenAI refuses them."""
    with pytest.raises(RequestError) as refusal:
        parse(ChatRequest, {"model": "m", "messages": messages})
    assert refusal.value.param == param
    assert words in str(refusal.value)
