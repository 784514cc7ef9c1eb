"""Streams outlive their decode pods: killed, frozen, drained or gone, the client sees one undisturbed stream."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest
from processes.asking import completion_body, random_prompt
from processes.streaming import Heard, listen
from support.serving import EnginePod, Fleet, Process
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

TICKING = {"status_interval": 0.1}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.8, "presence_penalty": 0.6, "repetition_penalty": 1.1, "n": 2},
    {"logprobs": 1, "stop": ["zzzz", "\n\n\n"], "min_tokens": 30},
    {"temperature": 1.0, "frequency_penalty": 0.3, "echo": True},
)


def bodies(seed: int, count: int, max_tokens: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    more = {"stream": True, "stream_options": {"include_usage": True}}
    return [
        completion_body(
            random_prompt(rng, rng.randrange(1, 150)),
            max_tokens=max_tokens + rng.randrange(40),
            **(more | VARIANTS[index % len(VARIANTS)] | {"seed": index}),
        )
        for index in range(count)
    ]


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as made:
        yield made


async def all_heard(url: str, asked: list[dict[str, Any]]) -> list[Heard]:
    async with session() as client:
        return await asyncio.gather(*[listen(client, url, body) for body in asked])


@contextmanager
def serving(fleet: Fleet, decodes: int, **options: Any) -> Iterator[tuple[Process, list[EnginePod], EnginePod]]:
    """A gateway, decode pods and a prefill pod, all ready."""
    pods = [fleet.pod("decode") for _ in range(decodes)]
    prefill = fleet.pod("prefill")
    gateway = fleet.gateway(pods, [prefill], **(TICKING | options))
    for pod in (*pods, prefill):
        pod.wait_ready()
    gateway.wait_ready()
    try:
        yield gateway, pods, prefill
    finally:
        for process in (gateway, *pods, prefill):
            process.kill()


async def until(condition: Any, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it never came to that"


def ready_decodes(gateway: Process) -> float:
    return gateway.metric(names.GATEWAY_PODS, role="decode", state="ready")


async def test_fifty_streams_and_random_kills(fleet: Fleet) -> None:
    with serving(fleet, 2) as (gateway, pods, prefill):
        asked = bodies(1, 50, max_tokens=500)
        undisturbed = await all_heard(gateway.url, asked)
        assert all(heard.done == 1 and heard.error is None for heard in undisturbed)
        rng = random.Random(2)
        hearing = asyncio.create_task(all_heard(gateway.url, asked))
        kills = 0
        while not hearing.done() and kills < 4:
            await until(lambda: hearing.done() or min(pod.status()["running"] for pod in pods) >= 5)
            if hearing.done():
                break
            victim = rng.randrange(2)
            pods[victim].kill()
            kills += 1
            pods[victim] = fleet.again(pods[victim])
            await asyncio.to_thread(pods[victim].wait_ready)
            await until(lambda: hearing.done() or ready_decodes(gateway) == 2)
        heard = await hearing
        assert [one.said() for one in heard] == [one.said() for one in undisturbed]
        assert all(len(one.heads) == 1 for one in heard)
        assert kills >= 1
        assert gateway.metric(names.GATEWAY_STREAM_RESUMES, cause="broken") >= 5
        assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
        for pod in (*pods, prefill):
            pod.wait_idle()
