"""Tensor-parallel pods: the same text, also when prefill and decode split the model differently."""

from __future__ import annotations

import random
import socket

import pytest
from processes.asking import completion_body, random_prompt, texts
from support.serving import START_PATIENCE_S, Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks"), [(2, 1), (1, 2)])
async def test_unequal_tensor_parallelism(fleet: Fleet, prefill_ranks: int, decode_ranks: int) -> None:
    prefill = fleet.pod("prefill", tensor_parallel_size=prefill_ranks)
    decode = fleet.pod("decode", tensor_parallel_size=decode_ranks)
    single = fleet.pod("both")
    for pod in (prefill, decode, single):
        pod.wait_ready()
    gateway = fleet.gateway([decode], [prefill])
    gateway.wait_ready()
    rng = random.Random(prefill_ranks)
    asked = [completion_body(random_prompt(rng, rng.randrange(20, 200))) for _ in range(12)]
    assert await texts(gateway.url, asked, concurrency=6) == await texts(single.url, asked, concurrency=6)
    assert decode.metric(names.HANDOFFS, side="received", outcome="ok") == 12
    assert decode.metric(names.HANDOFF_PAGES, side="received") > 50
    for pod in (decode, prefill):
        pod.wait_idle()
        assert pod.stop() == 0
    gateway.stop()
    single.kill()


async def test_a_rank_that_dies_takes_its_pod_with_it(fleet: Fleet) -> None:
    """Symptom elsewhere: the pod stays Ready while one rank is gone, and every request hangs in a collective."""
    pod = fleet.pod("both", tensor_parallel_size=2)
    pod.wait_ready()
    pod.kill_child("tandem-rank-1")
    assert pod.wait_exit() == 1
    assert "rank 1" in pod.log()


async def test_a_rank_that_dies_while_it_loads_is_named(fleet: Fleet) -> None:
    pod = fleet.pod("both", tensor_parallel_size=2)
    pod.wait_child("tandem-rank-1").kill()
    assert pod.wait_exit() == 1
    assert "tandem serve: rank 1 ended with status -9" in pod.log()


async def test_a_leader_that_cannot_start_takes_its_ranks_with_it(fleet: Fleet) -> None:
    """Symptom: the pod stayed NotReady for ever and never said why, its engine waiting for ranks that waited for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pod = fleet.pod("decode", tensor_parallel_size=2, kv_data_port=port)
        assert pod.wait_exit(START_PATIENCE_S) == 1
    assert f"--kv-data-port: cannot listen on 127.0.0.1:{port}: Address already in use" in pod.log()
