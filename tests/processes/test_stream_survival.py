"""Streams outlive their decode pods: killed, frozen, drained or gone, the client sees one undisturbed stream."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from processes.asking import completion_body, random_prompt
from processes.crowd import Crowd, Strike
from processes.streaming import Heard, hear, listen
from support.service import Service, serving
from support.serving import EnginePod, Fleet, Process
from tandem_contract import headers
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

SEED = "TANDEM_KILLS_SEED"
"""In the environment: repeats the kills of a run that failed, whose log names it."""
KILLS = 3
DECODES = 3
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


@pytest.fixture(scope="module")
def started(fleet: Fleet) -> Iterator[Service]:
    # A pod that is killed and then asked for nothing more leaves its leases to run out.
    with serving(fleet, decodes=DECODES, prefill={"handoff_lease_seconds": 3.0}, **TICKING) as made:
        yield made


@pytest.fixture
async def service(started: Service) -> Service:
    """Of three decode pods, all ready, whatever the test before did to them."""
    for pod in [pod for pod in started.decodes if not pod.alive]:
        started.again(pod)
    await until(lambda: ready_decodes(started.gateway) == DECODES)
    return started


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


async def until(condition: Callable[[], Any], within: float = 60.0) -> Any:
    """What `condition` is, once it is anything."""
    deadline = time.monotonic() + within
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)
    return found


def ready_decodes(gateway: Process) -> float:
    return gateway.metric(names.GATEWAY_PODS, role="decode", state="ready")


def resumes(gateway: Process, **labels: str) -> float:
    return gateway.metric(names.GATEWAY_STREAM_RESUMES, **labels)


def young_at(pod: EnginePod, crowd: Crowd) -> int:
    """Streams that `pod` has only begun: they do not end before anybody has noticed what became of it."""
    return sum(stream.chunks <= 30 for stream in crowd.live_at(pod))


def assert_undisturbed(crowd: Crowd, undisturbed: list[Any]) -> None:
    for streams, right in zip(crowd.heard, undisturbed, strict=True):
        assert [stream.said() for stream in streams] == [right] * len(streams)
        assert all((stream.done, stream.error, len(stream.heads)) == (1, None, 1) for stream in streams)


async def test_fifty_streams_and_random_kills(service: Service) -> None:
    """Fifty clients ask on and on until pods were killed under them often enough, however quick the machine."""
    seed = int(os.environ.get(SEED, secrets.randbits(32)))
    print(f"{SEED}={seed}")
    rng = random.Random(seed)
    gateway, asked = service.gateway, bodies(1, 50, max_tokens=400)
    undisturbed = [heard.said() for heard in await all_heard(gateway.url, asked)]
    resumed, strikes = resumes(gateway), list[Strike]()
    async with Crowd(gateway.url + "/v1/completions", asked) as crowd:

        def victims() -> list[EnginePod]:
            """With streams to lose, while another one is ready, as the gateway knows."""
            if not crowd.is_over_it:
                return []
            pods = gateway.get_json("/ui/fleet.json")["pods"]
            known = [pod["name"] for pod in pods if pod["state"] == "ready"]
            ready = [pod for pod in service.decodes if pod.name in known and pod.is_ready]
            return [pod for pod in ready if len(crowd.live_at(pod)) >= 5] if len(ready) >= 2 else []

        while sum(strike.hit for strike in strikes) < KILLS:
            moment = crowd.chunks + rng.randrange(500, 5000)
            victim = rng.choice(await until(lambda: crowd.chunks >= moment and victims()))  # noqa: B023
            strikes.append(crowd.strike(victim))
            service.again(victim)
    assert_undisturbed(crowd, undisturbed)
    assert sum(strike.hit for strike in strikes) >= KILLS
    assert resumes(gateway) - resumed >= KILLS
    assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
    await until(lambda: ready_decodes(gateway) == DECODES)
    service.wait_idle()


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    return bodies(3, 20, max_tokens=500)


@pytest.fixture(scope="module")
def undisturbed(started: Service, asked: list[dict[str, Any]]) -> list[Any]:
    return [heard.said() for heard in asyncio.run(all_heard(started.gateway.url, asked))]


async def test_a_pod_that_is_told_to_end_hands_its_streams_over(
    service: Service, asked: list[dict[str, Any]], undisturbed: list[Any]
) -> None:
    """At once, and so it ends long before its drain timeout."""
    gateway, pod = service.gateway, service.decodes[0]
    resumed = resumes(gateway, cause="leaving")
    async with Crowd(gateway.url + "/v1/completions", asked) as crowd:
        await until(lambda: young_at(pod, crowd) >= 3)
        began = time.monotonic()
        assert await asyncio.to_thread(pod.stop) == 0
        assert time.monotonic() - began < pod.flags.drain_timeout / 2
    assert_undisturbed(crowd, undisturbed)
    assert resumes(gateway, cause="leaving") > resumed
    assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0


async def test_a_frozen_pods_streams_go_on_elsewhere(
    service: Service, asked: list[dict[str, Any]], undisturbed: list[Any]
) -> None:
    """It says nothing, and its connections stay open."""
    gateway, pod = service.gateway, service.decodes[1]
    resumed = resumes(gateway, cause="pod_down")
    try:
        async with Crowd(gateway.url + "/v1/completions", asked) as crowd:
            await until(lambda: young_at(pod, crowd) >= 3)
            pod.signal(signal.SIGSTOP)
    finally:
        pod.signal(signal.SIGCONT)
    assert_undisturbed(crowd, undisturbed)
    assert resumes(gateway, cause="pod_down") > resumed
    assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
    await until(lambda: ready_decodes(gateway) == DECODES)
    service.wait_idle()


async def test_what_a_client_says_about_streams_is_neither_heard_nor_passed_on(
    service: Service, asked: list[dict[str, Any]], undisturbed: list[Any]
) -> None:
    gateway, pod = service.gateway, service.decodes[0]
    body = asked[0] | {"records": [{"outputs": [[1]]}]}
    forged = {headers.STREAM: "resume", headers.SIGNATURE: "1.x"}
    async with session() as client:
        assert (await listen(client, gateway.url, asked[0], headers=forged)).said() == undisturbed[0]
        async with client.post(gateway.url + "/v1/completions", json=body, headers=forged) as answer:
            assert (answer.status, "records" in await answer.text()) == (400, True)
        async with client.post(pod.url + "/v1/completions", json=asked[0], headers=forged) as answer:
            assert answer.status == 401
        live = {headers.STREAM: "live", headers.SIGNATURE: "1.x"}
        assert (await listen(client, pod.url, asked[0], headers=live)).done == 1


async def test_the_only_decode_pod_dies(service: Service) -> None:
    """A patient gateway waits until the pod is back; an impatient one says so; a client may leave meanwhile."""
    pod = service.decodes[0]
    patient = service.fleet.gateway([pod], [service.prefill], resume_timeout=120.0, **TICKING)
    impatient = service.fleet.gateway([pod], [], resume_timeout=1.0, **TICKING)
    patient.wait_ready()
    impatient.wait_ready()
    body, left = bodies(4, 2, max_tokens=1500)
    [undisturbed] = await all_heard(patient.url, [body])
    hearers = [Heard() for _ in range(3)]
    hearing, leaving, told = (
        asyncio.create_task(heard_by(hearer, url, asked))
        for hearer, (url, asked) in zip(
            hearers, ((patient.url, body), (patient.url, left), (impatient.url, body)), strict=True
        )
    )
    # A stream of which its client has nothing yet is one to be refused, not one to be gone on with.
    await until(lambda: min(hearer.chunks for hearer in hearers) >= 10)
    pod.kill()

    heard = await told
    assert (heard.done, heard.error["code"]) == (0, "no_pod_available")
    assert undisturbed.text[0].startswith(heard.text[0])
    assert impatient.metric(names.GATEWAY_STREAMS_LOST, reason="no_pod") == 1
    impatient.kill()

    assert patient.metric(names.GATEWAY_IN_FLIGHT) == 2
    leaving.cancel()
    await until(lambda: patient.metric(names.GATEWAY_IN_FLIGHT) == 1)
    again = service.again(pod)
    assert (await hearing).said() == undisturbed.said()
    assert resumes(patient) == 1
    again.wait_idle()
    patient.kill()
