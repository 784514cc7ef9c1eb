"""The status an engine pod reports to gateways and peers: `GET /internal/v1/status` on the API port."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["prefill", "decode", "both"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "both")

STATUS_PATH = "/internal/v1/status"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """A snapshot of one engine pod; every number is an instantaneous gauge."""

    name: str
    role: Role
    incarnation: str
    """Random per process start; a change means every page and job of the pod is gone."""
    models: tuple[str, ...]
    """Served model names, the primary first."""
    fingerprint: str
    """Hex digest of the KV layout (`handoff.LayoutFingerprint.digest`); only equal ones pair."""
    max_model_len: int
    page_size: int
    """Tokens per KV page."""
    handoff_port: int
    running: int
    """Sequences that hold KV pages and are scheduled."""
    waiting: int
    """Sequences queued for admission."""
    waiting_tokens: int
    """Prompt tokens queued and not yet computed (prefill backlog)."""
    max_waiting: int
    kv_pages_total: int
    kv_pages_used: int
    """Pages referenced by live sequences (cached but unreferenced pages are free)."""
    ready: bool
    draining: bool
    continuation: str = ""
    """Hex digest over all that decides how a stream goes on: equal ones give the same answer, to the token.

    Empty: never equal, as of a pod that loads its model, or is too old to say."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
