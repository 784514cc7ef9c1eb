"""An engine process that is alive and does nothing: its pod says so, and what waits there goes elsewhere."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator

import aiohttp
import pytest
from processes.asking import ask, ask_status, completion_body, random_prompt
from processes.faults import assert_right, until
from support.serving import EnginePod, Fleet

pytestmark = pytest.mark.processes

NOTICED_S = 15.0
"""Five missed heartbeats, and room for a busy machine; far from any request timeout."""


@pytest.fixture(scope="module")
def frozen(fleet: Fleet) -> Iterator[EnginePod]:
    """Its engine process can be suspended; each test resumes it."""
    pod = fleet.pod("both", max_num_seqs=1)
    pod.wait_ready()
    yield pod
    pod.kill()


async def test_a_frozen_engine_makes_its_pod_unready(frozen: EnginePod) -> None:
    """Symptom: the engine process was frozen, its pod stayed Ready, and the gateway went on picking it."""
    engine = frozen.child("tandem-engine")
    engine.suspend()
    await until(lambda: not frozen.status()["ready"])
    status, answer = await ask_status(frozen.url, completion_body([1, 2, 3]))
    assert (status, answer["error"]["code"]) == (503, "engine_dead")
    engine.resume()
    await until(lambda: frozen.status()["ready"])


async def test_a_request_at_a_frozen_engine_is_answered_by_another_pod(
    fleet: Fleet, frozen: EnginePod, reference: EnginePod
) -> None:
    """Symptom: new requests avoided the frozen engine, those already there waited until it thawed."""
    gateway = fleet.gateway([frozen, reference], [], strategy="RoundRobin")
    gateway.wait_ready()
    engine = frozen.child("tandem-engine")
    engine.suspend()
    began = time.monotonic()
    bodies = [completion_body(random_prompt(random.Random(seed), 40)) for seed in (2, 3)]
    for body, answer in zip(bodies, await asyncio.gather(*[ask(gateway.url, body) for body in bodies]), strict=True):
        await assert_right(answer, reference, body)
    assert time.monotonic() - began < NOTICED_S
    engine.resume()
    frozen.wait_idle()
    gateway.stop()


async def test_a_stream_from_a_frozen_engine_ends_with_an_error_event(frozen: EnginePod) -> None:
    engine = frozen.child("tandem-engine")
    body = completion_body(random_prompt(random.Random(4), 40), max_tokens=4000, stream=True)
    async with aiohttp.ClientSession() as session, session.post(frozen.url + "/v1/completions", json=body) as response:
        await response.content.readline()
        engine.suspend()
        lines = [line async for line in response.content if line.strip()]
    assert json.loads(lines[-1].removeprefix(b"data: "))["error"]["code"] == "engine_dead"
    engine.resume()
    frozen.wait_idle()
