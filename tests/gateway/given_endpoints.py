"""Endpoints that change when a test says so."""

from __future__ import annotations

import asyncio

from gateway.fake_engine import FakeEngine
from tandem_gateway.endpoints import Endpoint, Update


class GivenEndpoints:
    """The test says what there is."""

    def __init__(self, *engines: FakeEngine) -> None:
        self._first = engines

    async def run(self, update: Update) -> None:
        self._update = update
        self.set(*self._first)
        await asyncio.Event().wait()

    def set(self, *engines: FakeEngine, leaving: tuple[FakeEngine, ...] = ()) -> None:
        self._update(
            frozenset(
                [Endpoint(engine.url, "decode") for engine in engines]
                + [Endpoint(engine.url, "decode", leaving=True) for engine in leaving]
            )
        )
