"""Decode pods that guess ahead answer as one process that does not: through gateway and handoff, in bf16."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
from processes.asking import ask, completion_body, random_prompt
from processes.streaming import Heard, listen
from support.serving import EnginePod, Fleet, Process
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

FEW = dict.fromkeys(("64", "65", "66"), 60)
"""A bias that leaves `a`, `b` and `c`, so that even seeded texts repeat themselves."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.6, "logit_bias": FEW},
    {"temperature": 0.6, "logit_bias": FEW, "stop": ["abca", "bb", "ccab"], "min_tokens": 10},
    {"temperature": 0.5, "logit_bias": FEW, "presence_penalty": 0.4, "repetition_penalty": 1.1, "n": 3},
    {"logprobs": 2, "frequency_penalty": 0.05},
    {"temperature": 0.6, "logit_bias": FEW, "n": 2, "echo": True, "logprobs": 0},
)


@pytest.fixture(scope="module")
def decodes(fleet: Fleet) -> list[EnginePod]:
    return [fleet.pod("decode", dtype="bfloat16", speculative_method="ngram") for _ in range(2)]


@pytest.fixture(scope="module")
def gateway(fleet: Fleet, decodes: list[EnginePod]) -> Process:
    prefill = fleet.pod("prefill", dtype="bfloat16", speculative_method="ngram")
    process = fleet.gateway(decodes, [prefill], status_interval=0.1)
    for started in (prefill, *decodes, process):
        started.wait_ready()
    return process


@pytest.fixture(scope="module")
def plain(fleet: Fleet) -> EnginePod:
    pod = fleet.pod("both", dtype="bfloat16")
    pod.wait_ready()
    return pod


def bodies(seed: int, count: int, length: int = 60, **more: Any) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        completion_body(
            random_prompt(rng, rng.randrange(1, 200)),
            max_tokens=length + rng.randrange(60),
            **(VARIANTS[index % len(VARIANTS)] | {"seed": index} | more),
        )
        for index in range(count)
    ]


async def answers(url: str, asked: list[dict[str, Any]], concurrency: int) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> dict[str, Any]:
        async with slots:
            return await ask(url, body, {"X-Tandem-Timing": "1"})

    return await asyncio.gather(*[one(body) for body in asked])


async def heard(url: str, asked: list[dict[str, Any]]) -> list[Heard]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        return await asyncio.gather(*[listen(session, url, body) for body in asked])


def accepted(decodes: list[EnginePod]) -> float:
    return sum(pod.metric(names.ACCEPTED_TOKENS) for pod in decodes)


@pytest.mark.parametrize("concurrency", [2, 12], ids=["guessing all the time", "now and then"])
async def test_the_same_answers(gateway: Process, decodes: list[EnginePod], plain: EnginePod, concurrency: int) -> None:
    asked = bodies(concurrency, 24)
    before = accepted(decodes)
    with_guesses = await answers(gateway.url, asked, concurrency)
    for answer, without, body in zip(with_guesses, await answers(plain.url, asked, concurrency), asked, strict=True):
        assert answer["choices"] == without["choices"], body
        assert answer["usage"]["completion_tokens"] == without["usage"]["completion_tokens"], body
        assert (without["tandem"]["draft_tokens"], without["tandem"]["accepted_tokens"]) == (0, 0)
    assert {choice["finish_reason"] for answer in with_guesses for choice in answer["choices"]} == {"stop", "length"}
    assert accepted(decodes) > before + 50
    assert any(0 < answer["tandem"]["accepted_tokens"] < answer["tandem"]["draft_tokens"] for answer in with_guesses)
    for pod in decodes:
        pod.wait_idle()
        assert pod.metric(names.ACCEPTED_TOKENS) <= pod.metric(names.DRAFT_TOKENS)
        assert pod.metric(names.DRAFTS) <= pod.metric(names.DRAFT_TOKENS)


async def test_streams_outlive_a_pod_that_was_guessing(
    fleet: Fleet, gateway: Process, decodes: list[EnginePod], plain: EnginePod
) -> None:
    asked = bodies(5, 8, stream=True, stream_options={"include_usage": True}, length=1500, stop=None)
    undisturbed = [stream.said() for stream in await heard(plain.url, asked)]
    before = [pod.metric(names.ACCEPTED_TOKENS) for pod in decodes]
    hearing = asyncio.create_task(heard(gateway.url, asked))
    while decodes[0].metric(names.ACCEPTED_TOKENS) < before[0] + 40:
        assert not hearing.done(), "the streams were too short to be disturbed"
        await asyncio.sleep(0.02)
    decodes[0].kill()
    assert [stream.said() for stream in await hearing] == undisturbed
    assert gateway.metric(names.GATEWAY_STREAM_RESUMES, cause="broken") >= 1
    decodes[1].wait_idle()
