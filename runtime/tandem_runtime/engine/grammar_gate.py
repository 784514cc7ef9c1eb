"""Requests wait here, outside the scheduler, until their grammar is compiled; then it is kept for them to their end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem_runtime.core.errors import OverloadedError, RequestError
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.grammar.compile_queue import Compilation, CompileQueue, Outcome
from tandem_runtime.grammar.library import CompiledGrammar, GrammarLibrary

MOST_CHARS = 4 << 20
"""Of all grammars that requests wait for or use: half a gigabyte, were all of them of the costliest kind."""


class _Gated(NamedTuple):
    request: EngineRequest
    arrival: float
    admit: Callable[[EngineRequest, float], None]
    refuse: Callable[[EngineRequest, RequestError], None]


@dataclass(eq=False, slots=True)
class _Awaited:
    """A grammar that is being compiled."""

    compilation: Compilation | None = None
    gated: dict[str, _Gated] = field(default_factory=dict)
    """By request id, in order of arrival."""


class GrammarGate:
    """Used on the engine's thread, which is where `post` brings what has to happen later. Times are in its clock."""

    def __init__(
        self, library: GrammarLibrary, compilations: CompileQueue, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._library = library
        self._compilations = compilations
        self._post = post
        self._awaited: dict[str, _Awaited] = {}
        """By grammar."""
        self._gated: dict[str, str] = {}
        """Grammars by id of the request that waits."""
        self._held: dict[str, CompiledGrammar] = {}
        """By id of the request that was admitted: a step finds them in the library, whenever it runs."""

    @property
    def waiting(self) -> list[EngineRequest]:
        return [gated.request for awaited in self._awaited.values() for gated in awaited.gated.values()]

    def enter(
        self,
        request: EngineRequest,
        now: float,
        *,
        room: int,
        admit: Callable[[EngineRequest, float], None],
        refuse: Callable[[EngineRequest, RequestError], None],
    ) -> None:
        """Calls `admit`, with the time of arrival, or `refuse`; now or later.

        Requests with the same grammar keep their order. `room`: how many may wait here at once.
        """
        grammar = request.sampling.grammar
        if not grammar:
            admit(request, now)
            return
        awaited = self._awaited.get(grammar)
        if awaited is None and (compiled := self._library.use(grammar)) is not None:
            self._held[request.request_id] = compiled
            admit(request, now)
            return
        if len(self._gated) >= room:
            refuse(request, OverloadedError("too many requests are waiting already; try again later"))
            return
        if awaited is None:
            if self._chars_in_use() + len(grammar) > MOST_CHARS:
                refuse(request, OverloadedError("too many large structures are in use already; try again later"))
                return
            awaited = self._await(grammar)
        awaited.gated[request.request_id] = _Gated(request, now, admit, refuse)
        self._gated[request.request_id] = grammar

    def leave(self, request_id: str) -> None:
        """The request has ended, in whatever way: nothing is compiled or kept for it any more."""
        self._held.pop(request_id, None)
        grammar = self._gated.pop(request_id, None)
        if grammar is None:
            return
        awaited = self._awaited[grammar]
        del awaited.gated[request_id]
        if not awaited.gated:
            del self._awaited[grammar]
            assert awaited.compilation is not None
            self._compilations.cancel(awaited.compilation)

    def expire(self, now: float) -> list[tuple[EngineRequest, float]]:
        """Drops the waiting requests whose deadline has passed; returns them with their arrival."""
        overdue = [
            (gated.request, gated.arrival)
            for awaited in self._awaited.values()
            for gated in awaited.gated.values()
            if gated.request.deadline_s is not None and gated.arrival + gated.request.deadline_s <= now
        ]
        for request, _ in overdue:
            self.leave(request.request_id)
        return overdue

    def _await(self, grammar: str) -> _Awaited:
        awaited = self._awaited[grammar] = _Awaited()

        def done(outcome: Outcome) -> None:
            self._post(lambda: self._ready(grammar, awaited, outcome))

        awaited.compilation = self._compilations.begin(grammar, done)
        return awaited

    def _ready(self, grammar: str, awaited: _Awaited, outcome: Outcome) -> None:
        compiled = None if isinstance(outcome, RequestError) else self._library.add(grammar, outcome)
        if self._awaited.get(grammar) is not awaited:
            return  # all who waited have left
        del self._awaited[grammar]
        for request_id, (request, arrival, admit, refuse) in awaited.gated.items():
            del self._gated[request_id]
            if compiled is not None:
                self._held[request_id] = compiled
                admit(request, arrival)
            else:
                assert isinstance(outcome, RequestError)
                refuse(request, outcome)

    def _chars_in_use(self) -> int:
        return sum(map(len, {compiled.text for compiled in self._held.values()} | self._awaited.keys()))
