"""Clients that ask the same again and again, so that there are live streams for as long as a test needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
from processes.streaming import Heard, hear
from support.serving import EnginePod

MAY_BE_UNDER_WAY = 100
"""Chunks of a stream that its client may still get when its pod is gone."""


@dataclass(frozen=True)
class Strike:
    """Of a pod that was killed: the streams that it had, and how many chunks of each were heard by then."""

    streams: list[tuple[Heard, int]]

    @property
    def hit(self) -> bool:
        """Whether it is certain that a stream lost its pod in its middle, and went on."""
        return any(stream.chunks > before + MAY_BE_UNDER_WAY for stream, before in self.streams)


class Crowd(AbstractAsyncContextManager["Crowd"]):
    """A client for each body. `async with`: they begin; at its end each hears the rest of its last stream."""

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]]) -> None:
        self._url = url
        self._bodies = bodies
        self._enough = False
        self.heard: list[list[Heard]] = [[] for _ in bodies]
        """All streams of each client."""
        self._at_strike = [0] * len(bodies)

    @property
    def chunks(self) -> int:
        """Of all streams. Raises what went wrong for a client."""
        if self._running.done():
            self._running.result()
        return sum(self._counts())

    @property
    def is_over_it(self) -> bool:
        """Whether each client has heard more since the last strike: no answer has yet to begin that has lost a pod, and
        of two in a row before its first token it may be the cause (ADR 0006)."""
        return all(now > then for now, then in zip(self._counts(), self._at_strike, strict=True))

    def live_at(self, pod: EnginePod) -> list[Heard]:
        """Streams in their middle that are where they began, at `pod`."""
        latest = [streams[-1] for streams in self.heard if streams]
        return [stream for stream in latest if stream.chunks and not stream.done and pod.name in _names(stream)]

    def strike(self, pod: EnginePod) -> Strike:
        """Kills it."""
        struck = [(stream, stream.chunks) for stream in self.live_at(pod)]
        self._at_strike = self._counts()
        pod.kill()
        for stream, _ in struck:
            stream.pods = ""
        return Strike(struck)

    def _counts(self) -> list[int]:
        return [sum(stream.chunks for stream in streams) for streams in self.heard]

    async def __aenter__(self) -> Crowd:
        self._running = asyncio.gather(
            *[self._ask(body, heard) for body, heard in zip(self._bodies, self.heard, strict=True)]
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough = True
        if error is not None:
            self._running.cancel()
        await asyncio.wait([self._running])
        if error is None:
            self._running.result()

    async def _ask(self, body: dict[str, Any], heard: list[Heard]) -> None:
        timeout = aiohttp.ClientTimeout(total=240)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self._enough:
                heard.append(Heard())
                await hear(session, self._url, body, heard[-1])


def _names(stream: Heard) -> list[str]:
    return stream.pods.replace(";", "=").split("=")
