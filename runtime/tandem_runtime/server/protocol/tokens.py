"""Requests of /tokenize and /detokenize (vLLM's shapes)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import RequestModel
from tandem_runtime.server.protocol.chat import Tools
from tandem_runtime.server.protocol.common import TokenId
from tandem_runtime.server.protocol.messages import Messages
from tandem_runtime.server.protocol.thinking import EFFORT_NOTE, Effort, ThinkingRequest
from tandem_runtime.server.protocol.tools import ToolUse


class TokenizeRequest(ThinkingRequest):
    """Of a prompt, or of messages as /v1/chat/completions would see them."""

    effort_param: ClassVar[str] = "reasoning_effort"

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = Field(True, description="Of `prompt`; a chat template writes its own.")
    return_token_strs: bool = False
    tools: Tools | None = None
    reasoning_effort: Effort | None = Field(None, description=EFFORT_NOTE)

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of 'prompt' and 'messages' is required")
        if self.messages is None:
            for name in ("tools", "enable_thinking", "thinking_budget", "reasoning_effort", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name}' needs 'messages'")
        self.tool_use()
        return self

    @property
    def effort(self) -> Effort | None:
        return self.reasoning_effort

    def tool_use(self) -> ToolUse:
        return ToolUse.asked([tool.function for tool in self.tools or ()], None, parallel=None)


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
