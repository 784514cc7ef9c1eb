"""From an API request and its token ids to engine requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_tracing.context import TraceContext

from tandem_runtime.core.errors import PromptTooLongError, RequestError
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.messages import EngineRequest, SignedTicket
from tandem_runtime.server.protocol.common import SampledRequest
from tandem_runtime.server.sampling_defaults import NEUTRAL, SamplingDefaults

GREEDY_BELOW = 1e-5
"""A temperature; logits divided by less may overflow float32, and only the most likely token is left anyway."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer must keep to, beyond its length."""

    grammar: str = ""
    grammar_param: str | None = None
    thinking: Thinking | None = None


def to_engine_requests(
    request: SampledRequest,
    prompt_token_ids: list[int],
    *,
    request_id: str,
    info: EngineInfo,
    prompt_param: str,
    limit_param: str = "max_tokens",
    max_tokens: int | None,
    seed: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    deadline_s: float | None = None,
    tickets: Sequence[SignedTicket] = (),
    limits: Limits = Limits(),
    defaults: SamplingDefaults = NEUTRAL,
    trace: TraceContext | None = None,
) -> list[EngineRequest]:
    """One engine request per choice of one prompt; `seed` is for requests that name none, `prompt_param` and
    `limit_param` are the fields that the prompt and `max_tokens` came in.

    Choice i samples with seed + i. The first choice computes the prompt and carries the tickets
    (each is honoured once); the others come after it and find the prompt in the prefix cache.
    Raises `RequestError` for ids outside the vocabulary, and `PromptTooLongError`.
    """
    check_token_ids(prompt_token_ids, info, param=prompt_param)
    check_token_ids(request.stop_token_ids or (), info, param="stop_token_ids")
    limit = _max_tokens(max_tokens, len(prompt_token_ids), info, prompt_param, limit_param)
    if request.min_tokens > limit:
        raise RequestError(f"'min_tokens' {request.min_tokens} exceeds the limit of {limit} tokens", param="min_tokens")
    stop_token_ids = tuple(request.stop_token_ids or ())
    logit_bias = _logit_bias(request.logit_bias or {}, info)
    first_seed = seed if request.seed is None else request.seed
    return [
        EngineRequest(
            request_id=f"{request_id}-{index}",
            prompt_token_ids=prompt_token_ids,
            prompt_param=prompt_param,
            sampling=SamplingParams(
                max_tokens=limit,
                min_tokens=request.min_tokens,
                temperature=_temperature(_or(request.temperature, defaults.temperature)),
                top_p=_or(request.top_p, defaults.top_p),
                top_k=max(0, defaults.top_k if request.top_k is None else request.top_k),
                min_p=_or(request.min_p, defaults.min_p),
                repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
                presence_penalty=_or(request.presence_penalty, 0.0),
                frequency_penalty=_or(request.frequency_penalty, 0.0),
                logit_bias=logit_bias,
                seed=(first_seed + index) % 2**63,
                stop_token_ids=stop_token_ids if request.ignore_eos else (*info.eos_token_ids, *stop_token_ids),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                grammar=limits.grammar,
                grammar_param=limits.grammar_param,
                thinking=limits.thinking,
            ),
            deadline_s=deadline_s,
            tickets=list(tickets) if index == 0 else [],
            after="" if index == 0 else f"{request_id}-0",
            cache_salt=request.cache_salt or "",
            priority=request.priority,
            trace=trace,
        )
        for index in range(request.choices)
    ]


def check_choices(choices: int, prompts: int, info: EngineInfo) -> None:
    """Whether the engine's queue can hold all choices of all prompts at once. Raises `RequestError`."""
    if choices * prompts > info.max_waiting:
        asked = f"'n' {choices}" if prompts == 1 else f"{prompts} prompts times 'n' {choices}"
        raise RequestError(f"{asked} exceeds the {info.max_waiting} sequences that may wait on this server", param="n")


def check_token_ids(token_ids: Sequence[int], info: EngineInfo, *, param: str) -> None:
    if token_ids and max(token_ids) >= info.vocab_size:
        raise RequestError(
            f"'{param}': token id {max(token_ids)} is outside the vocabulary of {info.vocab_size} tokens", param=param
        )


def _max_tokens(asked: int | None, prompt_length: int, info: EngineInfo, prompt_param: str, limit_param: str) -> int:
    if prompt_length == 0:
        raise RequestError("the prompt has no tokens", param=prompt_param)
    room = info.max_model_len - prompt_length
    if room < 1:
        raise PromptTooLongError(
            f"the prompt has {prompt_length} tokens; the model's context of {info.max_model_len} tokens must hold it "
            "and at least one more",
            param=prompt_param,
        )
    if asked is not None and asked > room:
        raise PromptTooLongError(
            f"the prompt has {prompt_length} tokens and {asked} more were asked for; together they exceed the model's "
            f"context of {info.max_model_len} tokens",
            param=limit_param,
        )
    return room if asked is None else asked


def _logit_bias(bias: dict[str, float], info: EngineInfo) -> dict[int, float]:
    converted = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10) or int(key) >= info.vocab_size:
            raise RequestError(
                f"'logit_bias' names {key[:20]!r}, which is no token id below {info.vocab_size}", param="logit_bias"
            )
        converted[int(key)] = value
    return converted


def _temperature(asked: float) -> float:
    return asked if asked >= GREEDY_BELOW else 0.0


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
