"""Handoff control messages between a decode pod (D) and a prefill pod (P), as JSON over HTTP on port 8100.

    D -> P  POST /handoff/v1/prefill   PrefillJob   -> 202 | 401 ticket | 409 LayoutMismatch | 503 busy
    P -> D  POST /handoff/v1/reserve   ReserveAsk   -> 200 ReserveGrant | 404 job unknown | 503 not now
    P -> D  pages over the KV data connections (`transfer`), one stream per tensor-parallel rank
    P -> D  POST /handoff/v1/finish    JobEnd       -> 200; P gave up
    D -> P  POST /handoff/v1/ack       JobEnd       -> 200; P frees its pages (`error` set: abort)
    D -> P  POST /handoff/v1/alive     AliveProbe   -> 200 Alive; renews the leases of D's jobs

P computes KV for all tokens but the last and never samples. D reserves pages before P computes the
first chunk, but not while the job queues at P: P asks (`reserve`) when the job nears its queue's head.
The messages are plain dataclasses; receivers decode them with msgspec's JSON decoder, which checks every field's type
and ignores unknown fields, so that a newer peer may send more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields

PREFILL_PATH = "/handoff/v1/prefill"
RESERVE_PATH = "/handoff/v1/reserve"
FINISH_PATH = "/handoff/v1/finish"
ACK_PATH = "/handoff/v1/ack"
ALIVE_PATH = "/handoff/v1/alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFingerprint:
    """Everything that must agree before KV pages of one process mean anything in another.

    `tensor_parallel` is not compared: pages are head-major, so unequal TP is a slice.
    """

    model: str
    """Digest over the model's config and weight file identities, not a served name."""
    kv_dtype: str
    num_layers: int
    num_kv_heads: int
    """Of the whole model, before sharding."""
    head_dim: int
    page_size: int
    rope: str
    """Canonical JSON of the rope parameters in force (YaRN changes every key)."""
    tensor_parallel: int

    def mismatch(self, other: LayoutFingerprint) -> str | None:
        """The first field that differs, or None when pages may be exchanged."""
        for f in fields(self):
            if f.name != "tensor_parallel" and getattr(self, f.name) != getattr(other, f.name):
                return f.name
        return None

    def digest(self) -> str:
        """Hex; equal exactly when `mismatch` is None."""
        body = {k: v for k, v in asdict(self).items() if k != "tensor_parallel"}
        return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillJob:
    job_id: str
    """Unique per attempt: a failover uses a new id."""
    request_id: str
    ticket: str
    token_ids: list[int]
    held_tokens: int
    """Leading tokens whose KV D already holds; a multiple of the page size. P sends pages after them."""
    fingerprint: LayoutFingerprint
    decode_url: str
    """Handoff control address of D."""
    decode_incarnation: str
    cache_salt: str = ""
    priority: int = 0
    deadline_s: float | None = None
    """Seconds from receipt after which P drops the job."""
    traceparent: str = ""
    """D's span for this job (W3C Trace Context); empty where the request is not traced."""
    tracestate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveAsk:
    job_id: str
    prefill_pod: str
    """P's name, for traces and logs."""
    prefill_incarnation: str
    prefill_tensor_parallel: int
    token: str
    """Secret of this job, chosen by P; D's grant repeats it, and it authenticates finish and ack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSlot:
    page_id: int
    generation: int
    """Bumped each time the page changes owner; a write that names an old one is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveGrant:
    token: str
    data_token: str
    """Secret that opens the KV data connections of this job."""
    data_ports: list[int]
    """KV data port of each of D's ranks, on the host of `decode_url`."""
    transports: list[str] = field(default_factory=list)
    """How D's ranks can take pages besides TCP: `nixl`. P uses one that it speaks too, else TCP."""
    ipc_paths: list[str] = field(default_factory=list)
    """Unix socket of each of D's ranks, for a P on the same machine that shares its KV cache."""
    first_page: int
    """Index, within the sequence, of the first slot (= held_tokens / page_size)."""
    slots: list[PageSlot] = field(default_factory=list)
    """Where pages first_page, first_page + 1, ... go, one for each page that P computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    job_id: str
    token: str
    error: str | None = None
    """None only in an ack: every page has arrived. That P has sent everything is told by the data connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliveProbe:
    decode_url: str
    decode_incarnation: str
    """A new one tells P that every older job of this D is void."""
    job_ids: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    incarnation: str
    unknown_jobs: list[str]
    """Those of the probe's jobs that P does not have (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutMismatch:
    field: str
    prefill: str
    decode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """Where one request went; the `tandem` object of an answer asked for with the `TIMING` header."""

    decode_pod: str
    prefill_pod: str | None
    """None when the decode pod computed the prompt itself."""
    prompt_tokens: int
    cached_tokens: int
    """Found in the decode pod's own prefix cache."""
    handoff_pages: int
    handoff_bytes: int
    handoff_seconds: float
    """From asking the prefill pod to the last verified page."""
    queue_seconds: float
    ttft_seconds: float
    """From the request's arrival at the decode pod to its first token."""
    tpot_seconds: float
    """Mean time per output token after the first."""
    resumed_tokens: int = 0
    """Output tokens that other decode pods had sampled before the stream went on here; all else is this pod's."""
    draft_tokens: int = 0
    """Guessed by speculative decoding."""
    accepted_tokens: int = 0
    """Those of them that were right."""
    handoff_transport: str | None = None
    """How the pages travelled: `tcp`, `ipc` or `nixl`, joined by `+` where ranks differ; None where none did."""
