"""Requests of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import JsonObject, ignored, not_supported
from tandem_runtime.server.protocol.common import GenerationRequest, TokenCount
from tandem_runtime.server.protocol.messages import Messages

Nothing = Annotated[list[Any], Field(max_length=0)]


class ChatRequest(GenerationRequest):
    messages: Messages
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    enable_thinking: bool | None = Field(None, description="Short for the same in `chat_template_kwargs`.")
    chat_template_kwargs: JsonObject | None = Field(None, description="Variables of the model's chat template.")

    parallel_tool_calls: bool | None = ignored("there are no tools")
    tools: Nothing | None = not_supported("tool calling")
    tool_choice: Literal["none", "auto"] | None = not_supported("tool calling")
    functions: Nothing | None = not_supported("tool calling")
    function_call: Literal["none", "auto"] | None = not_supported("tool calling")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = not_supported("anything but text")
    audio: None = not_supported("audio output")
    prediction: None = not_supported("predicted outputs")
    reasoning_effort: None = not_supported("switch thinking with 'enable_thinking'")
    verbosity: None = not_supported("verbosity")
    web_search_options: None = not_supported("web search")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one")
        if self.enable_thinking is not None and "enable_thinking" in (self.chat_template_kwargs or {}):
            raise ValueError("'enable_thinking' is given twice: at top level and in 'chat_template_kwargs'")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `SamplingParams.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None
