"""What the requests that generate text have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import Off, RequestModel, ignored, not_supported
from tandem_runtime.server.protocol.structure import StructuredRequest

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_BIASES = 1024
"""Applied at every step of every choice, while the whole batch waits."""
_INT64_MAX = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
UsageInChunks = Literal["none", "last", "all"]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(RequestModel):
    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="With `include_usage`: in every chunk.")
    include_obfuscation: Off | None = not_supported("padding of events")

    @model_validator(mode="after")
    def _consistent(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("'continuous_usage_stats' needs 'include_usage': true")
        return self


class SampledRequest(RequestModel):
    """What every request that generates text has."""

    model: str
    stream: bool | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(None, description="0 or -1: all.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = (
        None
    )
    seed: Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)] | None = None

    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = Field(0, description="Lower runs earlier.")
    cache_salt: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Prompts share cached prefixes only with prompts of the same salt."
    )

    user: str | None = ignored("no per-user accounting")
    metadata: dict[str, Any] | None = ignored("nothing is stored")
    safety_identifier: str | None = ignored("no moderation")
    prompt_cache_key: str | None = ignored("the prefix cache is automatic")
    prompt_cache_options: dict[str, Any] | None = ignored("the prefix cache is automatic")
    prompt_cache_retention: str | None = ignored("the prefix cache is automatic")
    moderation: None = not_supported("moderation")
    store: Off | None = not_supported("answers are not stored")
    service_tier: Literal["auto", "default"] | None = not_supported("there is one tier")

    @property
    def choices(self) -> int:
        return 1

    @property
    def usage_in_chunks(self) -> UsageInChunks:
        return "last"

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class GenerationRequest(SampledRequest, StructuredRequest):
    """What chat completions and completions have in common."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def usage_in_chunks(self) -> UsageInChunks:
        if self.stream_options is None or not self.stream_options.include_usage:
            return "none"
        return "all" if self.stream_options.continuous_usage_stats else "last"
