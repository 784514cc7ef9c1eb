"""One timer per attempt for everything that may end it early: silence, the total time, a pod gone, shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType

from tandem_gateway.errors import ApiError, ClientTooSlow, Stalled, UpstreamTimeout


class Expired(Exception):
    """The block under the deadline was cut off; `error` says why in the API's terms."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Deadline:
    """`async with`: cancels the block at `end`, `stall` seconds after the last `touch`, or on `expire`.

    Before the first `touch` silence is no stall: a prompt may queue for long, and an answer that is no stream
    comes in one piece. `touch` is called per chunk, so it moves the timer only when a noticeable part of
    `stall` has passed. While it is the client's turn, the silence is the client's and not the pod's.
    """

    def __init__(self, *, end: float, stall: float) -> None:
        """`end` is in the loop's time, `stall` in seconds."""
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._stall = stall
        self._slack = min(1.0, stall / 4)
        self._armed_at = float("-inf")
        self._timeout = asyncio.timeout_at(end)
        self._error: ApiError | None = None
        self._clients_turn = False

    def touch(self) -> None:
        now = self._loop.time()
        if now - self._armed_at > self._slack and self._error is None:
            self._armed_at = now
            self._timeout.reschedule(min(self._end, now + self._stall))

    async def clients_turn(self, sending: Awaitable[None]) -> None:
        """Waits for the client to take what is being sent to it, for `stall` seconds too."""
        self._clients_turn = True
        await sending
        self._clients_turn = False  # not where it was cut off: `_timed_out` is still to ask
        self.touch()

    def expire(self, error: ApiError) -> None:
        """Ends the block now; only while it runs. The first cause stays."""
        if self._error is None and not self._timeout.expired():
            self._error = error
            self._timeout.reschedule(self._loop.time())

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, value, trace)
        except TimeoutError as timeout:
            raise Expired(self._error or self._timed_out()) from timeout

    def _timed_out(self) -> ApiError:
        if self._loop.time() >= self._end:
            return UpstreamTimeout("The answer took longer than the gateway's request timeout.")
        if self._clients_turn:
            return ClientTooSlow(f"The client took nothing of the answer for {self._stall:g} seconds.")
        return Stalled(f"The pod sent nothing for {self._stall:g} seconds.")
