"""Clients that stop reading in the middle of a stream: what ends it, what does not, and what they get of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.harness import CHAT, Client, gateway_before
from gateway.live_engine import LiveEngine
from support.held_up import held_up, narrow_connector
from tandem_gateway.deadline import Deadline

WORDS = 60_000
"""More than all buffers on the way take."""


@contextlib.asynccontextmanager
async def unread(client: Client) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer of which nothing was read."""
    body = {"model": "m", "stream": True, "messages": []}
    async with aiohttp.ClientSession(connector=narrow_connector(), read_bufsize=1024) as session:
        async with session.post(client.url + CHAT, json=body) as answer:
            yield answer


@contextlib.asynccontextmanager
async def paused(client: Client) -> AsyncIterator[aiohttp.ClientResponse]:
    """As `unread`, and the gateway waits for its client."""
    async with unread(client) as answer:
        await held_up(client.gateway.api_port)
        yield answer


async def test_a_stream_moves_while_its_client_reads_nothing(keys: dict[str, str]) -> None:
    """The client read some megabytes and then the end, without error or [DONE]: the cut reached the future in which
    aiohttp waits for the connection's buffer, and the next write met it cancelled."""
    first, second = LiveEngine(words=WORDS), LiveEngine(status("spare", ready=False), words=WORDS)
    async with first, second, gateway_before(first, second, **keys) as client, paused(client) as answer:
        second.status = status("spare")
        first.status = status(draining=True, ready=False)

        async def moved() -> bool:
            return bool(second.resumed_from)

        await eventually(moved)
        assert await answer.content.read() == stream_bytes(WORDS)
        assert len(second.resumed_from) == 1


async def test_a_cut_off_stream_tells_a_client_that_reads_on(caplog: pytest.LogCaptureFixture) -> None:
    """The same cancelled future made of it, in metrics and log, a client that had left before the answer (499)."""
    async with FakeEngine(words=WORDS) as engine, gateway_before(engine) as client, paused(client) as answer:
        stopping = asyncio.create_task(client.gateway.drain(0.0))

        async def cut_off() -> bool:
            return "cutting off" in caplog.text

        await eventually(cut_off)
        shown, _, error = (await answer.content.read()).partition(b'data: {"error"')
        assert stream_bytes(WORDS).startswith(shown)
        assert json.loads(b'{"error"' + error)["error"]["code"] == "shutting_down"
        await stopping

        async def counted() -> bool:
            return await client.metric('tandem_gateway_requests_total{code="200",route="/v1/chat/completions"}') == 1

        await eventually(counted)


async def test_a_client_that_takes_nothing_is_not_a_stalled_pod(keys: dict[str, str]) -> None:
    """Such streams went from pod to pod until they had used up their resumes, and every pod computed them."""
    first, second = LiveEngine(words=WORDS), LiveEngine(words=WORDS)
    async with first, second, gateway_before(first, second, stall_timeout=2.0, **keys) as client:
        async with unread(client) as answer:

            async def ended() -> bool:
                return await client.metric('tandem_gateway_streams_lost_total{reason="slow_client"}') == 1

            await eventually(ended)
            shown, _, error = (await answer.content.read()).partition(b'data: {"error"')
            assert stream_bytes(WORDS).startswith(shown)
            assert json.loads(b'{"error"' + error)["error"]["code"] == "client_too_slow"
        assert first.resumed_from == second.resumed_from == []


async def test_the_pods_silence_counts_from_when_the_client_had_taken_all() -> None:
    deadline = Deadline(end=asyncio.get_running_loop().time() + 60.0, stall=1.0)
    async with deadline:
        deadline.touch()
        await deadline.clients_turn(asyncio.sleep(0.7))
        await asyncio.sleep(0.6)
