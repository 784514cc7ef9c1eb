"""What chat templates see of a client's messages."""

from __future__ import annotations

from typing import Any

import pytest
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
    message = seen({"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]})
    assert message["content"] == ""
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"]["arguments"] == expected
