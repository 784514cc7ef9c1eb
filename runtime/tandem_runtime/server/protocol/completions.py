"""Requests of /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tandem_runtime.core.sampling import MAX_LOGPROBS
from tandem_runtime.server.protocol.base import not_supported
from tandem_runtime.server.protocol.common import MAX_CHOICES, GenerationRequest, TokenId

MAX_PROMPTS = 128

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(GenerationRequest):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Default 16. 0 only with `echo`: to score a prompt."
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Must equal `n`.")
    suffix: Annotated[str, Field(max_length=0)] | None = not_supported("completion in the middle")

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError("'best_of' other than 'n' is not supported")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("'max_tokens' 0 needs 'echo': true")
        if len(self.prompts) * self.choices > MAX_CHOICES:
            raise ValueError(f"'n' times the number of prompts must be at most {MAX_CHOICES}")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
