"""What the span of an API request says. Never a word of prompt or answer.

Names follow OpenTelemetry's conventions for HTTP and generative AI where those have one; others begin with `tandem.`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tandem_contract.handoff import RequestTrace
from tandem_tracing.spans import Span, Value

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.choice import Choice
from tandem_runtime.server.protocol.answers import Usage
from tandem_runtime.server.protocol.common import SampledRequest

Operation = Literal["chat", "text_completion"]
"""Of `gen_ai.operation.name`."""


def describe(span: Span, operation: Operation, asked: SampledRequest, *, max_tokens: int | None) -> None:
    """What the client asks for; what it leaves open is left out. `max_tokens` goes by another name in each API."""
    if span.context is None:
        return
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "tandem",
        "gen_ai.request.model": asked.model,
        "gen_ai.request.stream": asked.stream,
        "gen_ai.request.choice.count": asked.choices if asked.choices != 1 else None,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.request.temperature": asked.temperature,
        "gen_ai.request.top_p": asked.top_p,
        "gen_ai.request.top_k": asked.top_k,
        "gen_ai.request.presence_penalty": asked.presence_penalty,
        "gen_ai.request.frequency_penalty": asked.frequency_penalty,
        "gen_ai.request.seed": asked.seed,
    }
    span.rename(f"{operation} {asked.model}")
    span.set({name: value for name, value in attributes.items() if value is not None})


def conclude(span: Span, choices: Sequence[Choice], usage: Usage, trace: RequestTrace | None) -> None:
    """What has come of it, however it ended. `trace`: None before the first token."""
    attributes: dict[str, Value | Sequence[str]] = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.completion_tokens_details.reasoning_tokens,
    }
    if reasons := [choice.finish for choice in choices if choice.finish is not None]:
        attributes["gen_ai.response.finish_reasons"] = reasons
    if trace is not None:
        attributes["gen_ai.server.time_to_first_token"] = trace.ttft_seconds
        if trace.tpot_seconds:
            attributes["gen_ai.server.time_per_output_token"] = trace.tpot_seconds
        if trace.prefill_pod is not None:
            attributes["tandem.prefill.pod"] = trace.prefill_pod
        if trace.resumed_tokens:
            attributes["tandem.resumed_tokens"] = trace.resumed_tokens
    span.set(attributes)


def fail(span: Span, error: RequestError) -> None:
    span.fail(error.code or error.type, str(error))
