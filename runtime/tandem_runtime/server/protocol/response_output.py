"""Answers of /v1/responses: the response object, its items, and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from tandem_contract.handoff import RequestTrace

from tandem_runtime.server.protocol.answers import ContentLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, kw_only=True, tag="output_text"):
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[ContentLogprob] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, kw_only=True, tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningOutput(msgspec.Struct, kw_only=True, tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[dict[str, Any]] = []
    content: list[ReasoningText]


class FunctionCallOutput(msgspec.Struct, kw_only=True, tag="function_call"):
    id: str
    call_id: str
    """What the function's output will refer to."""
    name: str
    arguments: str
    """JSON text."""
    status: ItemStatus


Item = OutputMessage | ReasoningOutput | FunctionCallOutput


class InputTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0
    """The prefix cache costs nothing to write."""


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct, kw_only=True):
    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[Item] = []
    usage: ResponseUsage | None = None

    # What follows repeats the request.
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    temperature: float
    top_p: float
    top_logprobs: int
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    text: dict[str, Any]
    reasoning: dict[str, Any]
    background: bool = False
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["default"] = "default"
    previous_response_id: None = None
    tandem: RequestTrace | UnsetType = UNSET


class Event(msgspec.Struct, kw_only=True, tag=True):
    """`sequence_number` is set when the event is sent."""

    sequence_number: int = 0


class ResponseCreated(Event, kw_only=True, tag="response.created"):
    response: Response


class ResponseInProgress(Event, kw_only=True, tag="response.in_progress"):
    response: Response


class ResponseCompleted(Event, kw_only=True, tag="response.completed"):
    response: Response


class ResponseIncomplete(Event, kw_only=True, tag="response.incomplete"):
    response: Response


class ResponseFailed(Event, kw_only=True, tag="response.failed"):
    response: Response


class ItemAdded(Event, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: Item


class ItemDone(Event, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: Item


class _PartEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0


class PartAdded(_PartEvent, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(_PartEvent, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(_PartEvent, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[ContentLogprob]


class TextDone(_PartEvent, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[ContentLogprob]


class ReasoningDelta(_PartEvent, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(_PartEvent, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class _CallEvent(Event, kw_only=True):
    item_id: str
    output_index: int


class ArgumentsDelta(_CallEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_CallEvent, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


EVENTS: tuple[type[Event], ...] = (
    ResponseCreated,
    ResponseInProgress,
    ItemAdded,
    PartAdded,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
    PartDone,
    ArgumentsDelta,
    ArgumentsDone,
    ItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)
