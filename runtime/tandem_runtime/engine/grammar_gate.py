"""Requests wait here, outside the scheduler, until the grammar of their answer is compiled."""

from __future__ import annotations

from collections.abc import Callable

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.grammar.library import GrammarLibrary


class GrammarGate:
    """Used on the engine's thread, which is where `post` brings what has to happen later."""

    def __init__(self, library: GrammarLibrary, post: Callable[[Callable[[], None]], None]) -> None:
        self._library = library
        self._post = post
        self._waiting: set[str] = set()

    def enter(
        self,
        request: EngineRequest,
        admit: Callable[[EngineRequest], None],
        refuse: Callable[[EngineRequest, GrammarError], None],
    ) -> None:
        """Calls `admit` or `refuse`, now or later. A request that names another in `after` never overtakes it."""
        grammar = request.sampling.grammar
        if not grammar or (grammar in self._library and request.after not in self._waiting):
            admit(request)
            return

        def ready(error: GrammarError | None) -> None:
            if request.request_id not in self._waiting:
                return  # aborted
            self._waiting.discard(request.request_id)
            if error is None:
                admit(request)
            else:
                refuse(request, error)

        self._waiting.add(request.request_id)
        self._library.prepare(grammar, lambda error: self._post(lambda: ready(error)))

    def drop(self, request_id: str) -> None:
        self._waiting.discard(request_id)
