"""Which pods answer a request: values in, value out.

The rule of `PrefixAware`: of the pods whose load is within `LOAD_FACTOR` of the least, the one that was sent most
of the prompt before; of equals, the least loaded. Bounding load first (Mirrokni et al., "Consistent Hashing with
Bounded Loads", 2016) keeps a popular prefix from flooding one pod.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem_contract.status import Role

Strategy = Literal["PrefixAware", "LeastLoaded", "RoundRobin"]

LOAD_FACTOR = 1.2
"""A pod may have this much more load than the least loaded one and still be picked for its prefix."""
FREE_SEQUENCES = 4
"""Decode: up to so many sequences cost each other next to nothing, so they are no queue."""
FREE_TOKENS = 2048
"""Prefill: a backlog of about one chunk is no queue."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod at the moment of the choice."""

    key: str
    role: Role
    models: tuple[str, ...]
    fingerprint: str
    usable: bool
    """Healthy, ready and not draining."""
    load: float
    """Decode: sequences in the pod; prefill: prompt tokens to compute. What was sent since the last poll counts."""
    waiting: int
    """Sequences queued for admission."""
    known_blocks: int
    """Leading blocks of this prompt that the pod was sent before."""
    continuation: str = ""
    """Equal ones go on with each other's streams; empty: with none."""


@dataclass(frozen=True, slots=True)
class Ask:
    model: str | None
    """None: any pod will do; the pod itself judges a request without a model."""
    wants_prefill: bool = True
    exclude: frozenset[str] = frozenset()
    """Keys of pods that failed this request already."""
    turn: int = 0
    """Counts requests; breaks ties, and is the position of `RoundRobin`."""
    continuation: str | None = None
    """Of the only decode pods that will do: those whose text is the same."""


@dataclass(frozen=True, slots=True)
class Choice:
    decode: str
    prefill: str | None
    """None: the decode pod computes the prompt itself."""
    spare: str | None = None
    """Another prefill pod, for when the first one fails the request."""


def choose(ask: Ask, pods: Sequence[PodView], strategy: Strategy = "PrefixAware") -> Choice | None:
    """None when no decode pod can take the request now."""
    able = [pod for pod in pods if pod.usable and pod.key not in ask.exclude]
    decode = _pick(ask, [pod for pod in able if pod.role != "prefill" and _serves(pod, ask)], strategy)
    if decode is None:
        return None
    peers = []
    if ask.wants_prefill and decode.role == "decode":
        peers = [pod for pod in able if pod.role == "prefill" and pod.fingerprint == decode.fingerprint]
    prefill = _pick(ask, peers, strategy)
    spare = _pick(ask, [pod for pod in peers if pod is not prefill], strategy)
    return Choice(decode.key, prefill.key if prefill else None, spare.key if spare else None)


def served_models(pods: Iterable[PodView]) -> Collection[str]:
    """Names clients may use, whether or not their pods can answer just now."""
    return dict.fromkeys(name for pod in pods if pod.role != "prefill" for name in pod.models)


def _serves(pod: PodView, ask: Ask) -> bool:
    return ask.model in (None, *pod.models) and ask.continuation in (None, pod.continuation)


def _pick(ask: Ask, pods: list[PodView], strategy: Strategy) -> PodView | None:
    if not pods:
        return None
    start = ask.turn % len(pods)
    pods = pods[start:] + pods[:start]
    if strategy == "RoundRobin":
        return pods[0]
    least_load = min(pod.load for pod in pods)
    if strategy == "LeastLoaded":
        return next(pod for pod in pods if pod.load == least_load)
    pods = [pod for pod in pods if pod.load <= max(LOAD_FACTOR * least_load, _free(pod))]
    fewest_waiting = min(pod.waiting for pod in pods)
    pods = [pod for pod in pods if pod.waiting <= LOAD_FACTOR * fewest_waiting]
    return min(pods, key=lambda pod: (-pod.known_blocks, pod.load))


def _free(pod: PodView) -> int:
    return FREE_TOKENS if pod.role == "prefill" else FREE_SEQUENCES
