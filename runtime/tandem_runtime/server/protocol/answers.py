"""Answer bodies and stream chunks; encoded by msgspec, which costs about a microsecond per chunk."""

from __future__ import annotations

import uuid
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from tandem_contract.handoff import RequestTrace


class _Answer(msgspec.Struct, kw_only=True):
    pass


class PromptTokensDetails(_Answer):
    cached_tokens: int


class CompletionTokensDetails(_Answer):
    reasoning_tokens: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[ContentLogprob]
    refusal: None = None


ChatFinish = Literal["stop", "length", "tool_calls"]


class CalledFunction(_Answer):
    arguments: str
    """JSON text, or a part of it."""
    name: str | UnsetType = UNSET
    """In a stream: with the first part."""


class MessageToolCall(_Answer):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ToolCallPiece(_Answer):
    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(_Answer):
    content: str | None
    """Null when the answer ended inside its reasoning."""
    reasoning_content: str | None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    refusal: None = None


class ChatChoice(_Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatCompletion(_Answer, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    tandem: RequestTrace | UnsetType = UNSET


class ChatDelta(_Answer):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChatChunkChoice(_Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None


class ChatCompletionChunk(_Answer, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    tandem: RequestTrace | UnsetType = UNSET


class CompletionLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: ChatFinish | None
    """Never `tool_calls`: a completion has no tools."""


class Completion(_Answer, kw_only=True):
    """Also the shape of a stream's chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    tandem: RequestTrace | UnsetType = UNSET


class ModelCard(_Answer, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tandem"] = "tandem"
    root: str
    max_model_len: int | None
    """Null while the model loads."""


class ModelList(_Answer, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeAnswer(_Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(_Answer):
    prompt: str


def usage(*, prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
    )


def call_id(answer_id: str, choice: int, index: int) -> str:
    """The same on every pod that takes part in a stream."""
    return f"call_{uuid.uuid5(uuid.NAMESPACE_OID, f'{answer_id}/{choice}/{index}').hex[:24]}"
