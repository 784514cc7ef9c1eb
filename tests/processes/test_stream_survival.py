"""Streams outlive their decode pods: killed, frozen, drained or gone, the client sees one undisturbed stream."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from processes.asking import completion_body, random_prompt
from processes.streaming import Heard, hear, listen
from support.service import serving
from support.serving import Fleet, Process
from tandem_contract import headers
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


async def heard_by(hearer: Heard, url: str, asked: dict[str, Any]) -> Heard:
    async with session() as client:
        return await hear(client, url + "/v1/completions", asked, hearer)


async def until(condition: Any, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it never came to that"


def ready_decodes(gateway: Process) -> float:
    return gateway.metric(names.GATEWAY_PODS, role="decode", state="ready")


async def test_fifty_streams_and_random_kills(fleet: Fleet) -> None:
    with serving(fleet, decodes=2, **TICKING) as service:
        gateway, pods = service.gateway, service.decodes
        asked = bodies(1, 50, max_tokens=500)
        undisturbed = await all_heard(gateway.url, asked)
        assert all(heard.done == 1 and heard.error is None for heard in undisturbed)
        rng = random.Random(2)
        hearing = asyncio.create_task(all_heard(gateway.url, asked))
        kills, said = 0, [pod.metric(names.GENERATION_TOKENS) for pod in pods]
        while not hearing.done() and kills < 4:
            # Running, and heard by their clients: before that a request is asked again, not resumed.
            await until(lambda: hearing.done() or min(pod.status()["running"] for pod in pods) >= 5)
            await until(
                lambda: (
                    hearing.done()
                    or all(
                        pod.metric(names.GENERATION_TOKENS) >= before + 500
                        for pod, before in zip(pods, said, strict=True)
                    )
                )
            )
            if hearing.done():
                break
            victim = rng.randrange(2)
            pods[victim].kill()
            kills += 1
            pods[victim], said[victim] = fleet.again(pods[victim]), 0
            await asyncio.to_thread(pods[victim].wait_ready)
            await until(lambda: hearing.done() or ready_decodes(gateway) == 2)
        heard = await hearing
        assert [one.said() for one in heard] == [one.said() for one in undisturbed]
        assert all(len(one.heads) == 1 for one in heard)
        assert kills >= 1
        assert gateway.metric(names.GATEWAY_STREAM_RESUMES, cause="broken") >= 5
        assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
        service.wait_idle()


async def test_drained_frozen_and_hostile(fleet: Fleet) -> None:
    """One fleet for three stories, as starting it takes longest."""
    with serving(fleet, decodes=2, **TICKING) as service:
        gateway, pods = service.gateway, service.decodes
        asked = bodies(3, 20, max_tokens=300)
        undisturbed = [heard.said() for heard in await all_heard(gateway.url, asked)]

        # A pod that is told to end hands its streams over at once, and ends long before its drain timeout.
        hearing = asyncio.create_task(all_heard(gateway.url, asked))
        await until(lambda: pods[0].status()["running"] >= 3)
        began = time.monotonic()
        assert await asyncio.to_thread(pods[0].stop) == 0
        assert time.monotonic() - began < pods[0].flags.drain_timeout / 2
        assert [heard.said() for heard in await hearing] == undisturbed
        assert gateway.metric(names.GATEWAY_STREAM_RESUMES, cause="leaving") >= 3
        pods[0] = fleet.again(pods[0])
        await asyncio.to_thread(pods[0].wait_ready)
        await until(lambda: ready_decodes(gateway) == 2)

        # A frozen pod says nothing, and its connections stay open.
        hearing = asyncio.create_task(all_heard(gateway.url, asked))
        await until(lambda: pods[1].status()["running"] >= 3)
        pods[1].signal(signal.SIGSTOP)
        assert [heard.said() for heard in await hearing] == undisturbed
        assert gateway.metric(names.GATEWAY_STREAM_RESUMES, cause="pod_down") >= 3
        pods[1].signal(signal.SIGCONT)
        await until(lambda: ready_decodes(gateway) == 2)

        # What a client says about streams is neither heard nor passed on.
        body = asked[0] | {"records": [{"outputs": [[1]]}]}
        forged = {headers.STREAM: "resume", headers.SIGNATURE: "1.x"}
        async with session() as client:
            assert (await listen(client, gateway.url, asked[0], headers=forged)).said() == undisturbed[0]
            async with client.post(gateway.url + "/v1/completions", json=body, headers=forged) as answer:
                assert (answer.status, "records" in await answer.text()) == (400, True)
            async with client.post(pods[0].url + "/v1/completions", json=asked[0], headers=forged) as answer:
                assert answer.status == 401
            live = {headers.STREAM: "live", headers.SIGNATURE: "1.x"}
            assert (await listen(client, pods[0].url, asked[0], headers=live)).done == 1
        assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
        service.wait_idle()


async def test_the_only_decode_pod_dies(fleet: Fleet) -> None:
    """A patient gateway waits until the pod is back; an impatient one says so; a client may leave meanwhile."""
    with serving(fleet, resume_timeout=120.0, **TICKING) as service:
        gateway, pods = service.gateway, service.decodes
        impatient = fleet.gateway(pods, [], resume_timeout=1.0, **TICKING)
        impatient.wait_ready()
        body, left = bodies(4, 2, max_tokens=1500)
        [undisturbed] = await all_heard(gateway.url, [body])
        hearers = [Heard() for _ in range(3)]
        hearing, leaving, told = (
            asyncio.create_task(heard_by(hearer, url, asked))
            for hearer, (url, asked) in zip(
                hearers, ((gateway.url, body), (gateway.url, left), (impatient.url, body)), strict=True
            )
        )
        # A stream of which its client has nothing yet is one to be refused, not one to be gone on with.
        await until(lambda: min(hearer.chunks for hearer in hearers) >= 10)
        pods[0].kill()

        heard = await told
        assert (heard.done, heard.error["code"]) == (0, "no_pod_available")
        assert undisturbed.text[0].startswith(heard.text[0])
        assert impatient.metric(names.GATEWAY_STREAMS_LOST, reason="no_pod") == 1
        impatient.kill()

        assert gateway.metric(names.GATEWAY_IN_FLIGHT) == 2
        leaving.cancel()
        await until(lambda: gateway.metric(names.GATEWAY_IN_FLIGHT) == 1)
        pods[0] = fleet.again(pods[0])
        await asyncio.to_thread(pods[0].wait_ready)
        assert (await hearing).said() == undisturbed.said()
        assert gateway.metric(names.GATEWAY_STREAM_RESUMES) == 1
        pods[0].wait_idle()
