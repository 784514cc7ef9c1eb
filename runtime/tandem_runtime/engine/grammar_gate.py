"""Requests wait here, outside the scheduler, until the grammar of their answer is compiled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from tandem_runtime.core.errors import GrammarError, OverloadedError, RequestError
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.grammar.library import GrammarLibrary


class _Gated(NamedTuple):
    request: EngineRequest
    arrival: float
    compilation: Future[None]


class GrammarGate:
    """Used on the engine's thread, which is where `post` brings what has to happen later. Times are in its clock."""

    def __init__(self, library: GrammarLibrary, post: Callable[[Callable[[], None]], None]) -> None:
        self._library = library
        self._post = post
        self._gated: dict[str, _Gated] = {}

    @property
    def waiting(self) -> list[EngineRequest]:
        return [gated.request for gated in self._gated.values()]

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

        A request that names another in `after` never overtakes it. `room`: how many may wait here at once.
        """
        grammar = request.sampling.grammar
        if not grammar or (grammar in self._library and request.after not in self._gated):
            admit(request, now)
            return
        if len(self._gated) >= room:
            refuse(request, OverloadedError("too many requests are waiting already; try again later"))
            return

        def ready(error: GrammarError | None) -> None:
            if self._gated.pop(request.request_id, None) is None:
                return  # aborted, or overdue
            if error is None:
                admit(request, now)
            else:
                refuse(request, error)

        compilation = self._library.prepare(grammar, lambda error: self._post(lambda: ready(error)))
        self._gated[request.request_id] = _Gated(request, now, compilation)

    def drop(self, request_id: str) -> None:
        """Its grammar is not compiled, unless that has begun, or another request waits for it too."""
        gated = self._gated.pop(request_id, None)
        if gated is not None:
            gated.compilation.cancel()

    def expire(self, now: float) -> list[tuple[EngineRequest, float]]:
        """Drops the requests whose deadline has passed; returns them with their arrival."""
        overdue = [
            (request, arrival)
            for request, arrival, _ in self._gated.values()
            if request.deadline_s is not None and arrival + request.deadline_s <= now
        ]
        for request, _ in overdue:
            self.drop(request.request_id)
        return overdue
