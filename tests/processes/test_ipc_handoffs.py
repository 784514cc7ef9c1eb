"""Pages that decode pods read in the memory of prefill pods give the answers of one process."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from processes.asking import ask, completion_body, random_prompt
from processes.faults import ticketed, until
from processes.mixed_transports import assert_answers_are_those_of_one_process
from support.serving import EnginePod, Fleet
from tandem_contract import headers

pytestmark = pytest.mark.processes

IPC = {"dtype": "bfloat16", "kv_transport": "ipc"}


def mapped(pod: EnginePod) -> int:
    """KV caches of other processes that the pod's engine has in its address space."""
    maps = Path(f"/proc/{pod.child('tandem-engine').pid}/maps").read_text()
    return sum("memfd:tandem-kv" in line for line in maps.splitlines())


async def hand_over(fleet: Fleet, prefill: EnginePod, decode: EnginePod, seed: int) -> int:
    """Pages that went from one to the other for a prompt of 100 tokens."""
    body = completion_body(random_prompt(random.Random(seed), 100))
    answer = await ask(decode.url, body, {**ticketed(fleet, prefill, f"{seed}"), headers.TIMING: "1"})
    return int(answer["tandem"]["handoff_pages"])


async def test_answers_are_those_of_one_process_whoever_shares_memory(fleet: Fleet) -> None:
    decode = await assert_answers_are_those_of_one_process(fleet, "ipc")
    assert mapped(decode) == 1, "of the one prefill pod that shares"


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks", "mapped_by_the_first"), [(2, 1, 2), (1, 2, 1)])
async def test_ranks_map_those_whose_heads_they_want(
    fleet: Fleet, reference: EnginePod, prefill_ranks: int, decode_ranks: int, mapped_by_the_first: int
) -> None:
    prefill = fleet.pod("prefill", kv_transport="ipc", tensor_parallel_size=prefill_ranks)
    decode = fleet.pod("decode", kv_transport="ipc", tensor_parallel_size=decode_ranks)
    for pod in (prefill, decode):
        pod.wait_ready()
    body = completion_body(random_prompt(random.Random(3), 200))
    answer = await ask(decode.url, body, {**ticketed(fleet, prefill, "one"), headers.TIMING: "1"})
    assert answer["choices"][0]["text"] == (await ask(reference.url, body))["choices"][0]["text"]
    assert answer["tandem"]["handoff_pages"] == 13
    assert answer["tandem"]["handoff_transport"] == "ipc"
    assert mapped(decode) == mapped_by_the_first


async def test_pods_that_are_killed_leave_nothing_behind(fleet: Fleet) -> None:
    named = os.listdir("/dev/shm")
    prefill, decode = fleet.pod("prefill", **IPC), fleet.pod("decode", **IPC)
    for pod in (prefill, decode):
        pod.wait_ready()
    assert await hand_over(fleet, prefill, decode, 1) == 7
    assert mapped(decode) == 1

    prefill.signal(signal.SIGKILL)
    prefill.wait_exit()
    await until(lambda: mapped(decode) == 0)
    prefill = fleet.again(prefill)
    prefill.wait_ready()
    assert await hand_over(fleet, prefill, decode, 2) == 7
    assert mapped(decode) == 1

    decode.signal(signal.SIGKILL)
    decode.wait_exit()
    decode = fleet.again(decode)
    decode.wait_ready()
    assert await hand_over(fleet, prefill, decode, 3) == 7
    for pod in (prefill, decode):
        pod.wait_idle()
    assert os.listdir("/dev/shm") == named
