"""A fleet in which one of two prefill pods has the decode pod's KV transport, and the other speaks TCP alone."""

from __future__ import annotations

import random

from processes.asking import completion_body, random_prompt, texts
from support.serving import EnginePod, Fleet
from tandem_contract import metrics as names


async def assert_answers_are_those_of_one_process(fleet: Fleet, kv_transport: str) -> EnginePod:
    """The decode pod, after pages from both."""
    decode = fleet.pod("decode", dtype="bfloat16", kv_transport=kv_transport)
    prefill = [fleet.pod("prefill", dtype="bfloat16", **more) for more in ({"kv_transport": kv_transport}, {})]
    single = fleet.pod("both", dtype="bfloat16")
    for pod in (decode, *prefill, single):
        pod.wait_ready()
    gateway = fleet.gateway([decode], prefill)
    gateway.wait_ready()
    rng = random.Random(12)
    asked = [completion_body(random_prompt(rng, rng.randrange(20, 300))) for _ in range(24)]
    assert await texts(gateway.url, asked, concurrency=8) == await texts(single.url, asked, concurrency=8)
    for pod in (decode, *prefill):
        pod.wait_idle()
    sent = [pod.metric(names.HANDOFF_PAGES, side="sent") for pod in prefill]
    assert all(sent), sent
    assert decode.metric(names.HANDOFF_PAGES, side="received") == sum(sent)
    return decode
