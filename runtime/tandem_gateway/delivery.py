"""One request on its way: what the client asked, what it has got, and how often the answer may begin or go on anew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from tandem_tracing.spans import Span

from tandem_gateway.errors import ApiError, BadUpstream, PodLeaving, Stalled
from tandem_gateway.events import EventRelay, LiveRelay
from tandem_gateway.journal import Journal
from tandem_gateway.pod import Pod
from tandem_gateway.prompt import Prompt
from tandem_gateway.relay import ClientStream

Cause = Literal["broken", "pod_down", "stalled", "leaving"]

ENGINE_DEAD = "engine_dead"
"""Error code of a pod whose engine process has ended, and of such an attempt."""

MAX_BARREN_DEATHS = 2
"""Pods in a row that failed under a resumed stream before it had one more token: one more might take the fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds, but for `max_attempts`, `max_resumes` and `max_journal_bytes`."""

    request_timeout: float
    stall_timeout: float
    max_attempts: int
    max_resumes: int
    max_journal_bytes: int
    resume_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A client's request, read and checked."""

    request_id: str
    method: str
    path: str
    """With the query, as the client sent it."""
    headers: CIMultiDictProxy[str]
    body: bytes
    prompt: Prompt
    wants_prefill: bool
    span: Span
    on_begin: Callable[[], None]
    """Called once, when the first byte of the answer is there."""


class AttemptFailed(Exception):
    """The attempt brought the client nothing, so another pod may answer; `answer` is what is left if none can."""

    def __init__(self, reason: str, answer: ApiError | web.Response) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer

    @property
    def pod_may_have_died_of_it(self) -> bool:
        """Whether one may suspect the request."""
        return self.reason in (ENGINE_DEAD, "broken", "pod_down")


class Interrupted(Exception):
    """A live stream broke off at the pod `key` after it had begun; another pod may go on."""

    def __init__(self, cause: Cause, key: str, error: ApiError) -> None:
        super().__init__(cause)
        self.cause = cause
        self.key = key
        self.error = error


class Lost(Exception):
    """A stream that has begun cannot go on; `error` is what its client is told."""

    def __init__(self, reason: str, error: ApiError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


@dataclass(frozen=True, slots=True)
class Source:
    """A pod's answer, open."""

    pod: Pod
    content: aiohttp.StreamReader
    events: EventRelay | LiveRelay
    held: ExitStack
    """The connection, and whatever else the answer occupies."""


@dataclass(slots=True, kw_only=True)
class Delivery:
    call: Call
    request: web.Request
    started: float
    """In the loop's time."""
    end: float
    wants_live: bool
    journal: Journal
    client: ClientStream | None = None
    source: Source | None = None
    """What this attempt passes on; None until it does."""
    parked: Source | None = None
    """The answer of a pod that leaves, kept until another pod goes on."""
    continuation: str = ""
    """Of the pods that can go on with the stream; empty: none can."""
    cause: Cause | None = None
    """Why the stream goes on at another pod just now."""
    attempts: int = 0
    """Begun so far."""
    resumes: int = 0
    refused_by: frozenset[str] = frozenset()
    """Keys of pods that would not go on with the stream."""
    stays_until: float = 0.0
    """In the loop's time: no other pod took the stream lately."""
    barren_deaths: int = 0
    _seen: int = 0

    @property
    def begun(self) -> bool:
        return self.client is not None and self.client.begun

    @property
    def resumable(self) -> bool:
        return self.continuation != "" and not (self.journal.lost or self.journal.ended)

    def interrupted(self, cut: Interrupted) -> None:
        """Counts a break, whose pod may have died of the request unless the stream had got on."""
        progressed = self.journal.length > self._seen
        self._seen = self.journal.length
        if progressed:
            self.barren_deaths = 0
        elif cut.cause in ("broken", "pod_down"):
            self.barren_deaths += 1
        self.cause = cut.cause

    def park(self) -> None:
        assert self.source is not None
        self.parked = replace(self.source, held=self.source.held.pop_all())

    def unpark(self) -> Source:
        assert self.parked is not None
        source, self.parked = self.parked, None
        return source

    def let_go(self) -> None:
        if self.parked is not None:
            self.unpark().held.close()


def cause_of(error: ApiError) -> Cause | None:
    """Of an attempt that `error` cut off; None where no other pod could do better."""
    match error:
        case PodLeaving():
            return "leaving"
        case BadUpstream():
            return "pod_down"
        case Stalled():
            return "stalled"
        case _:
            return None
