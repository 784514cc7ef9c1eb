"""What crosses between the API process and the engine process (msgpack over a ZeroMQ socket pair)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace
from tandem_contract.handoff import RequestTrace
from tandem_contract.ticket import Ticket
from tandem_tracing.context import TraceContext
from tandem_tracing.spans import FinishedSpan

from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs

HEARTBEAT_S = 1.0
"""The engine sends a status at least this often; one that is silent for longer hangs, or is frozen."""

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]


class SignedTicket(msgspec.Struct, frozen=True):
    ticket: Ticket
    text: str
    """As signed by the gateway, to be shown to the prefill pod."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sequence to generate; `n > 1` is several of these (the prefix cache shares the prompt)."""

    request_id: str
    prompt_token_ids: list[int]
    prompt_param: str = "prompt"
    """The API's field that the prompt came in."""
    sampling: SamplingParams
    output_token_ids: list[int] = []
    """Sampled before, by another pod; the sequence goes on after them, as after a preemption."""
    deadline_s: float | None = None
    """Seconds from receipt."""
    tickets: list[SignedTicket] = []
    """Verified permissions to use a prefill pod, the preferred pod first; the next ones are for failover."""
    after: str = ""
    """Id of a request with the same prompt: this one is queued once that one has its first token, so that the prompt
    is computed once and found in the prefix cache."""
    cache_salt: str = ""
    """Separates prefix caches of tenants; part of the page hash."""
    priority: int = 0
    """Lower runs earlier; equal priorities run in order of arrival."""
    trace: TraceContext | None = None
    """Of the request's span; None where it is not traced."""

    @property
    def known_token_ids(self) -> list[int]:
        """All tokens so far: what a prefill pod is asked to compute."""
        return self.prompt_token_ids + self.output_token_ids


class OtherChoice(msgspec.Struct, frozen=True, array_like=True):
    """Where a choice differs from the first one of its prompt."""

    request_id: str
    seed: int
    prompt_logprobs: int | None
    output_token_ids: list[int]


class Choices(msgspec.Struct, frozen=True, tag=True):
    """All choices of one prompt, in one message: what they have in common may be long (prompt, grammar)."""

    first: EngineRequest
    others: list[OtherChoice]

    @classmethod
    def of(cls, requests: Sequence[EngineRequest]) -> Choices:
        """`requests` as `to_engine_requests` makes them: the others come after the first one and have no tickets."""
        first, *others = requests
        assert all(other.after == first.request_id and not other.tickets for other in others)
        return cls(
            first,
            [
                OtherChoice(
                    other.request_id, other.sampling.seed, other.sampling.prompt_logprobs, other.output_token_ids
                )
                for other in others
            ],
        )

    def requests(self) -> list[EngineRequest]:
        return [self.first, *map(self._request, self.others)]

    def _request(self, other: OtherChoice) -> EngineRequest:
        sampling = replace(self.first.sampling, seed=other.seed, prompt_logprobs=other.prompt_logprobs)
        return replace(
            self.first,
            request_id=other.request_id,
            sampling=sampling,
            output_token_ids=other.output_token_ids,
            tickets=[],
            after=self.first.request_id,
        )


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """News of one request. The last one carries `finish_reason`; nothing follows it."""

    request_id: str
    token_ids: list[int] = []
    """Sampled since the previous output, a stop token included."""
    logprobs: list[TokenLogprobs] | None = None
    """One for each of `token_ids`, if asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """In the first output: one for each prompt token but the first."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The stop or EOS token that ended the sequence (the last of `token_ids`)."""
    error: str | None = None
    """With finish_reason `error`: what went wrong, fit for the client."""
    error_code: str = ""
    """With finish_reason `error`: the `code` of the `RequestError` that refused the request."""
    error_param: str | None = None
    """With finish_reason `error`: the API's field that is to blame."""
    cached_tokens: int = 0
    trace: RequestTrace | None = None
    """In the first and in the last output, and wherever guesses were verified: a stop string, which the engine knows
    nothing of, may end it in between."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Gauges and counters since start, sent by the engine after steps (at most every 100 ms) and when idle."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    kv_pages_quarantined: int = 0
    handoffs_open: int = 0
    """Jobs that peers wait for, or that wait for a peer."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    leases_expired: int = 0
    handoff_fallbacks: dict[str, int] = {}
    """By reason."""
    handoffs: dict[str, int] = {}
    """By `side/outcome`."""
    handoff_bytes: dict[str, int] = {}
    """By side: sent, received."""
    handoff_pages: dict[str, int] = {}
    step_seconds: list[float] = []
    """Of the steps since the previous status."""
    gap_seconds: list[float] = []


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Everything one step (or one event) has to say, in one message."""

    outputs: list[EngineOutput]


class Spans(msgspec.Struct, frozen=True, tag=True):
    """What traced requests and jobs have been through since the last message."""

    spans: list[FinishedSpan]


class ControlCall(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A handoff control message. To the engine: a peer posted it here. From the engine: post it to `url`."""

    call_id: int
    path: str
    body: bytes
    url: str = ""
    """Scheme, host and port of the peer; empty towards the engine."""
    timeout_s: float = 5.0


class ControlReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    call_id: int
    status: int
    """HTTP status; 0 when the peer could not be reached in time (`body` then says why)."""
    body: bytes = b""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine is starting: `done` of `total` bytes of weights are loaded."""

    done: int
    total: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine is about to exit."""

    message: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Abort everything and exit."""
