"""Input items of /v1/responses, and the chat messages they amount to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tandem_runtime.server.protocol.base import JsonObject, RequestModel, ignored
from tandem_runtime.server.protocol.messages import (
    MAX_MESSAGES,
    ONLY_TEXT,
    AssistantMessage,
    FunctionCall,
    Message,
    RefusalPart,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)

_NOT_READ = "not part of the prompt"

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(RequestModel):
    """Also takes back a text that this API answered with."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[JsonObject] | None = ignored(_NOT_READ)
    logprobs: list[JsonObject] | None = ignored(_NOT_READ)
    prompt_cache_breakpoint: JsonObject | None = ignored("the prefix cache is automatic")


class ReasoningText(RequestModel):
    type: Literal["reasoning_text"]
    text: str


_PARTS = {"input_text": "a text", "output_text": "a text", "refusal": "a refusal"}


def _part_kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return _PARTS.get(kind) if isinstance(kind, str) else None


Part = Annotated[
    Annotated[InputText, Tag("a text")] | Annotated[RefusalPart, Tag("a refusal")],
    Discriminator(_part_kind, custom_error_type="unsupported_part", custom_error_message=ONLY_TEXT),
]


class _Item(RequestModel):
    id: str | None = ignored("nothing is stored")
    status: Status | None = ignored(_NOT_READ)


class MessageItem(_Item):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    phase: str | None = ignored(_NOT_READ)

    @property
    def text(self) -> str:
        return _text(self.content)


class ReasoningItem(_Item):
    type: Literal["reasoning"]
    summary: list[JsonObject] | None = ignored("the reasoning itself is in 'content'")
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = ignored("the reasoning is in 'content', in plain text")

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    caller: JsonObject | None = ignored(_NOT_READ)
    namespace: str | None = ignored(_NOT_READ)


class FunctionOutputItem(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputText], Field(fail_fast=True)]
    caller: JsonObject | None = ignored(_NOT_READ)
    name: str | None = ignored("'call_id' says which")
    namespace: str | None = ignored(_NOT_READ)


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None) or "message"
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unsupported_item",
        custom_error_message="such items are not supported; give messages, reasoning, function calls and their outputs "
        "in full, as nothing is stored",
    ),
]
InputItems = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def check_calls(items: str | list[InputItem]) -> None:
    """Every call has its output, and every output its call, as OpenAI insists. Raises `ValueError` that names which.

    An id may come again once its call has been answered.
    """
    unanswered: dict[str, int] = {}
    answered: set[str] = set()
    for index, item in enumerate(() if isinstance(items, str) else items):
        if isinstance(item, FunctionCallItem):
            if (earlier := unanswered.setdefault(item.call_id, index)) != index:
                raise ValueError(
                    f"'input[{index}].call_id' is {item.call_id[:64]!r}, as of 'input[{earlier}]', which has no output "
                    "yet; give each call an id of its own"
                )
        elif isinstance(item, FunctionOutputItem):
            if item.call_id not in unanswered and item.call_id not in answered:
                raise ValueError(
                    f"'input[{index}].call_id' is {item.call_id[:64]!r}, which is no function call before it"
                )
            unanswered.pop(item.call_id, None)
            answered.add(item.call_id)
    for call_id, index in unanswered.items():
        raise ValueError(f"'input[{index}]' is the function call {call_id[:64]!r}, for which there is no output")


def to_messages(items: str | list[InputItem], instructions: str | None) -> list[Message]:
    """Reasoning, text and function calls that follow one another are one message of the assistant."""
    messages: list[Message] = []
    if instructions is not None:
        messages.append(SystemMessage(role="system", content=instructions))
    if isinstance(items, str):
        return [*messages, UserMessage(role="user", content=items)]
    for item in items:
        if isinstance(item, FunctionOutputItem):
            messages.append(ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        elif not isinstance(item, MessageItem) or item.role == "assistant":
            _add_to_turn(messages, item)
        elif item.role == "user":
            messages.append(UserMessage(role="user", content=item.text))
        else:
            messages.append(SystemMessage(role=item.role, content=item.text))
    return messages


def _add_to_turn(messages: list[Message], item: MessageItem | ReasoningItem | FunctionCallItem) -> None:
    last = messages[-1] if messages else None
    turn = last if isinstance(last, AssistantMessage) else None
    if turn is None or (isinstance(item, ReasoningItem) and (turn.content is not None or turn.tool_calls)):
        turn = AssistantMessage(role="assistant")
        messages.append(turn)
    match item:
        case ReasoningItem():
            turn.reasoning_content = (turn.reasoning_content or "") + item.text
        case FunctionCallItem():
            call = ToolCall(
                id=item.call_id, type="function", function=FunctionCall(name=item.name, arguments=item.arguments)
            )
            turn.tool_calls = [*(turn.tool_calls or ()), call]
        case MessageItem():
            turn.content = item.text if turn.content is None else f"{turn.content}\n{item.text}"


def _text(content: str | list[Part] | list[InputText]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
