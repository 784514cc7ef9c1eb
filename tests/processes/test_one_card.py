"""Prefill and decode on one GPU: pages stay in its memory, and answers are those of one process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from processes.asking import completion_body, random_prompt, texts
from support.serving import Fleet
from tandem_contract import metrics as names

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no CUDA device"),
]

SHARE = {"device": "cuda", "dtype": "float32", "kv_cache_memory": None, "gpu_memory_utilization": 0.2}


async def test_two_processes_on_one_card_answer_as_one(fleet: Fleet) -> None:
    prefill = fleet.pod("prefill", kv_transport="ipc", **SHARE)
    prefill.wait_ready()
    decode = fleet.pod("decode", kv_transport="ipc", **SHARE)
    decode.wait_ready()
    single = fleet.pod("both", **SHARE)
    single.wait_ready()
    gateway = fleet.gateway([decode], [prefill])
    gateway.wait_ready()
    rng = random.Random(5)
    asked = [completion_body(random_prompt(rng, rng.randrange(20, 300))) for _ in range(24)]
    one_by_one = await texts(single.url, asked, concurrency=1)
    assert await texts(gateway.url, asked, concurrency=1) == one_by_one
    assert decode.metric(names.HANDOFFS, side="received", outcome="ok") == 24
    assert "mapped" in decode.log()
    assert "over TCP" not in prefill.log()
    for pod in (prefill, decode):
        pod.wait_idle()
