"""Pages that decode pods read by NIXL give the answers of one process; a prefill pod without it is served over TCP."""

from __future__ import annotations

import random

import pytest
from processes.asking import completion_body, random_prompt, texts
from support.serving import EnginePod, Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes


async def test_answers_are_those_of_one_process_whoever_speaks_nixl(fleet: Fleet) -> None:
    pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")
    pods: list[EnginePod] = [
        fleet.pod("prefill", dtype="bfloat16", kv_transport="nixl"),
        fleet.pod("prefill", dtype="bfloat16"),
        fleet.pod("decode", dtype="bfloat16", kv_transport="nixl"),
        fleet.pod("both", dtype="bfloat16"),
    ]
    for pod in pods:
        pod.wait_ready()
    speaks_nixl, speaks_tcp, decode, single = pods
    gateway = fleet.gateway([decode], [speaks_nixl, speaks_tcp])
    gateway.wait_ready()
    rng = random.Random(12)
    asked = [completion_body(random_prompt(rng, rng.randrange(20, 300))) for _ in range(24)]
    assert await texts(gateway.url, asked, concurrency=8) == await texts(single.url, asked, concurrency=8)
    for pod in pods[:3]:
        pod.wait_idle()
    sent = [pod.metric(names.HANDOFF_PAGES, side="sent") for pod in (speaks_nixl, speaks_tcp)]
    assert all(sent), sent
    assert decode.metric(names.HANDOFF_PAGES, side="received") == sum(sent)
    assert decode.log().count("by NIXL") == 1, "the one prefill pod that has it"
