"""Requests of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tandem_runtime.core.sampling import MAX_LOGPROBS
from tandem_runtime.server.protocol.base import RequestModel, not_supported
from tandem_runtime.server.protocol.common import GenerationRequest, TokenCount
from tandem_runtime.server.protocol.conversation import Conversation, ConversationRequest
from tandem_runtime.server.protocol.messages import Messages, check_calls
from tandem_runtime.server.protocol.thinking import EFFORT_NOTE, Effort
from tandem_runtime.server.protocol.tools import (
    CHOICE_NOTE,
    MAX_TOOLS,
    FunctionDefinition,
    NamedFunction,
    ToolMode,
    ToolUse,
)

Nothing = Annotated[list[Any], Field(max_length=0)]


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class NamedTool(RequestModel):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest, ConversationRequest):
    effort_param: ClassVar[str] = "reasoning_effort"

    messages: Messages
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: Effort | None = Field(None, description=EFFORT_NOTE)

    tools: Tools | None = None
    tool_choice: ToolMode | NamedTool | None = Field(None, description=CHOICE_NOTE)
    parallel_tool_calls: bool | None = None

    functions: Nothing | None = not_supported("use 'tools'")
    function_call: Literal["none", "auto"] | None = not_supported("use 'tool_choice'")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = not_supported("anything but text")
    audio: None = not_supported("audio output")
    prediction: None = not_supported("predicted outputs")
    verbosity: Literal["medium"] | None = not_supported("say in a message how long the answer is to be")
    web_search_options: None = not_supported("web search")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one")
        self._tool_use()
        check_calls(self.messages)
        return self

    @property
    def effort(self) -> Effort | None:
        return self.reasoning_effort

    def to_conversation(self) -> Conversation:
        return Conversation(
            messages=self.messages,
            messages_param="messages",
            tools=self._tool_use(),
            structure=self.structure(),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            max_tokens_param="max_tokens" if self.max_completion_tokens is None else "max_completion_tokens",
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _tool_use(self) -> ToolUse:
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        functions = [tool.function for tool in self.tools or ()]
        return ToolUse.asked(functions, choice, parallel=self.parallel_tool_calls)
