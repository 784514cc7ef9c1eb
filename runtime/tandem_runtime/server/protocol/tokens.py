"""Requests of /tokenize and /detokenize (vLLM's shapes)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import JsonObject, RequestModel
from tandem_runtime.server.protocol.common import TokenId
from tandem_runtime.server.protocol.messages import Messages


class TokenizeRequest(RequestModel):
    """Of a prompt, or of messages as /v1/chat/completions would see them."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = Field(True, description="Of `prompt`; a chat template writes its own.")
    return_token_strs: bool = False
    chat_template_kwargs: JsonObject | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of 'prompt' and 'messages' is required")
        if self.messages is None and self.chat_template_kwargs is not None:
            raise ValueError("'chat_template_kwargs' needs 'messages'")
        return self


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
