"""Chat messages as clients send them, and as chat templates read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Discriminator, Field, Tag

from tandem_runtime.server.protocol.base import JsonObject, RequestModel, ignored, not_supported

MAX_MESSAGES = 10_000
ONLY_TEXT = "content is text: images, audio and files are not supported"


def _text_only(kind: object) -> object:
    if kind != "text":
        raise ValueError(ONLY_TEXT)
    return kind


class TextPart(RequestModel):
    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: str
    prompt_cache_breakpoint: JsonObject | None = ignored("the prefix cache is automatic")


class RefusalPart(RequestModel):
    type: Literal["refusal"]
    refusal: str


def _kind(part: Any) -> str:
    """No key of a part, which an error's location could be mistaken for."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "a refusal" if kind == "refusal" else "a text"


AssistantPart = Annotated[
    Annotated[TextPart, Tag("a text")] | Annotated[RefusalPart, Tag("a refusal")], Discriminator(_kind)
]
Content = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class SystemMessage(RequestModel):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(RequestModel):
    role: Literal["user"]
    content: Content
    name: str | None = None


_PARSED = "OpenAI's clients put it beside the text that it was parsed from"


class FunctionCall(RequestModel):
    name: str
    arguments: str | JsonObject
    parsed_arguments: Any = ignored(_PARSED)


class ToolCall(RequestModel):
    id: str
    type: Literal["function"]
    function: FunctionCall
    index: Any = ignored("a stream's, which clients that put deltas together send back")


class AssistantMessage(RequestModel):
    """Also takes back, unchanged, a message that this API or OpenAI's answered with, or OpenAI's clients parsed."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(min_length=1, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[JsonObject], Field(max_length=0)] | None = None
    parsed: Any = ignored(_PARSED)
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


def check_calls(messages: list[Message]) -> None:
    """Every call has its result, and every result its call, as OpenAI insists. Raises `ValueError` that names which."""
    calling = 0
    """The message whose calls are being answered."""
    called: set[str] = set()
    missing: set[str] = set()
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if not called:
                raise ValueError(f"'messages[{index}]' has the role 'tool', but follows no message with 'tool_calls'")
            if message.tool_call_id not in called:
                raise ValueError(
                    f"'messages[{index}].tool_call_id' is {message.tool_call_id[:64]!r}, which is no call of "
                    f"'messages[{calling}]'"
                )
            missing.discard(message.tool_call_id)
            continue
        _check_answered(missing, calling)
        calls = [call.id for call in message.tool_calls or ()] if isinstance(message, AssistantMessage) else []
        calling, called = index, set(calls)
        if len(called) < len(calls):
            position = next(at for at, call_id in enumerate(calls) if call_id in calls[:at])
            raise ValueError(
                f"'messages[{index}].tool_calls[{position}].id' is {calls[position][:64]!r}, as of another call of the "
                "message; give each an id of its own"
            )
        missing = set(called)
    _check_answered(missing, calling)


def _check_answered(missing: set[str], calling: int) -> None:
    if missing:
        raise ValueError(
            f"'messages[{calling}].tool_calls' must be followed by a message with the role 'tool' for each call; there "
            f"is none for {min(missing)[:64]!r}"
        )


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Parts are joined by line breaks, a refusal is what the assistant said, `developer` is a system message, and
    content is always a string.

    Arguments of tool calls are objects, as templates expect them, though OpenAI sends them as JSON text.
    """
    return [_for_template(message) for message in messages]


def _for_template(message: Message) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True)
    fields["content"] = _said(message)
    if message.role == "developer":
        fields["role"] = "system"
    for call in fields.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return fields


def _said(message: Message) -> str:
    match message.content:
        case None:
            return (message.refusal or "") if isinstance(message, AssistantMessage) else ""
        case str() as text:
            return text
        case parts:
            return "\n".join([part.refusal if isinstance(part, RefusalPart) else part.text for part in parts])


def _arguments(given: str | dict[str, Any]) -> Any:
    if isinstance(given, dict):
        return given
    try:
        return orjson.loads(given)
    except orjson.JSONDecodeError:
        return given  # a model's failed attempt is part of the history as it is
