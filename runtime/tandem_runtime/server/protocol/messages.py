"""Chat messages as clients send them, and as chat templates read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from tandem_runtime.server.protocol.base import JsonObject, RequestModel, not_supported

MAX_MESSAGES = 10_000


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class SystemMessage(RequestModel):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(RequestModel):
    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(RequestModel):
    name: str
    arguments: str | JsonObject


class ToolCall(RequestModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(RequestModel):
    """Also takes back, unchanged, a message that this API or OpenAI's answered with."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[JsonObject], Field(max_length=0)] | None = None
    audio: None = not_supported("audio")
    function_call: None = not_supported("the predecessor of 'tool_calls'")


class ToolMessage(RequestModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Parts are joined by line breaks, `developer` is a system message, content is always a string.

    Arguments of tool calls are objects, as templates expect them, though OpenAI sends them as JSON text.
    """
    return [_for_template(message) for message in messages]


def _for_template(message: Message) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True)
    content = message.content if message.content is not None else ""
    fields["content"] = content if isinstance(content, str) else "\n".join(part.text for part in content)
    if message.role == "developer":
        fields["role"] = "system"
    for call in fields.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return fields


def _arguments(given: str | dict[str, Any]) -> Any:
    if isinstance(given, dict):
        return given
    try:
        return orjson.loads(given)
    except orjson.JSONDecodeError:
        return given  # a model's failed attempt is part of the history as it is
