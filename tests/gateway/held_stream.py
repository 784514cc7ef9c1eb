"""A stream that its pod holds up after a few words, so that a test decides when pods leave, break off and join."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status
from gateway.harness import Answer, Client, gateway_before
from gateway.live_engine import LiveEngine

WORDS = 30
HELD_AT = 4
"""Words that the client has by then."""
LOST = "tandem_gateway_streams_lost_total"


def spare(name: str = "spare", *, continuation: str = "c", **fields: Any) -> LiveEngine:
    """A pod that is not ready yet."""
    return LiveEngine(status(name, ready=False, continuation=continuation), words=WORDS, **fields)


def breaking() -> LiveEngine:
    """Holds its streams up, and breaks them off once thawed."""
    return LiveEngine(words=WORDS, freeze_after=HELD_AT, break_thawed=True)


def refusing(status: int, code: str) -> web.Response:
    return web.json_response({"error": {"message": "no", "code": code}}, status=status)


def resumes(cause: str) -> str:
    return f'tandem_gateway_stream_resumes_total{{cause="{cause}"}}'


FULL = refusing(503, "engine_overloaded")
OTHER_ANSWER = refusing(409, "other_answer")


def join(*pods: FakeEngine) -> None:
    for pod in pods:
        pod.status = replace(pod.status, ready=True)


@dataclass
class HeldStream:
    client: Client
    pod: LiveEngine
    asking: asyncio.Task[Answer]

    def drain(self, *takers: FakeEngine) -> None:
        """The stream's pod is told to end, while `takers` are ready."""
        join(*takers)
        self.pod.status = status(draining=True, ready=False)

    async def drained(self) -> None:
        """The gateway knows."""
        await eventually(lambda: self.client.counts('tandem_gateway_pods{role="decode",state="draining"}', 1))

    async def ready(self, count: int) -> None:
        await eventually(lambda: self.client.counts('tandem_gateway_pods{role="decode",state="ready"}', count))

    async def resumed(self, cause: str, count: int) -> None:
        await eventually(lambda: self.client.counts(resumes(cause), count))

    async def resumes(self, cause: str) -> float:
        return await self.client.metric(resumes(cause))

    async def in_flight(self) -> int:
        """Answers that the gateway has open, at pods."""
        pods = json.loads((await self.client.get("/ui/fleet.json")).body)["pods"]
        return sum(pod["in_flight"] for pod in pods)

    async def nothing_in_flight(self) -> bool:
        return await self.in_flight() == 0

    async def body(self) -> bytes:
        return (await asyncio.wait_for(self.asking, 20)).body


@contextlib.asynccontextmanager
async def held_stream(*others: FakeEngine, pod: LiveEngine | None = None, **gateway: Any) -> AsyncIterator[HeldStream]:
    """`others`: not ready yet, so that the stream is at `pod`. `gateway`: flags."""
    held = pod or LiveEngine(words=WORDS, freeze_after=HELD_AT)
    async with contextlib.AsyncExitStack() as stack:
        for engine in (held, *others):
            await stack.enter_async_context(engine)
        client = await stack.enter_async_context(gateway_before(held, *others, **gateway))
        asking = asyncio.create_task(client.chat(stream=True))
        await asyncio.wait_for(held.frozen.wait(), 20)
        yield HeldStream(client, held, asking)
