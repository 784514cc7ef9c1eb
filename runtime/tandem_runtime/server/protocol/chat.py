"""Requests of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import not_supported
from tandem_runtime.server.protocol.common import GenerationRequest, TokenCount
from tandem_runtime.server.protocol.messages import Messages
from tandem_runtime.server.protocol.thinking import ThinkingRequest
from tandem_runtime.server.protocol.tools import ToolRequest

Nothing = Annotated[list[Any], Field(max_length=0)]


class ChatRequest(GenerationRequest, ToolRequest, ThinkingRequest):
    messages: Messages
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    functions: Nothing | None = not_supported("use 'tools'")
    function_call: Literal["none", "auto"] | None = not_supported("use 'tool_choice'")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = not_supported("anything but text")
    audio: None = not_supported("audio output")
    prediction: None = not_supported("predicted outputs")
    verbosity: None = not_supported("verbosity")
    web_search_options: None = not_supported("web search")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `SamplingParams.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None
