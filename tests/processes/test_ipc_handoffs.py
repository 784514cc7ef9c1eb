"""Pages that decode pods read in the memory of prefill pods give the answers of one process."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes.asking import ask, completion_body, random_prompt, texts
from support.service import Service, serving
from support.serving import EnginePod, Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

IPC = {"dtype": "bfloat16", "kv_transport": "ipc"}


def mapped(pod: EnginePod) -> int:
    """KV caches of other processes that the pod's engine has in its address space."""
    maps = Path(f"/proc/{pod.child('tandem-engine').pid}/maps").read_text()
    return sum("memfd:tandem-kv" in line for line in maps.splitlines())


async def test_answers_are_those_of_one_process_whoever_shares_memory(fleet: Fleet) -> None:
    pods: list[EnginePod] = [
        fleet.pod("prefill", **IPC),
        fleet.pod("prefill", dtype="bfloat16"),
        fleet.pod("decode", **IPC),
        fleet.pod("both", dtype="bfloat16"),
    ]
    for pod in pods:
        pod.wait_ready()
    shares, speaks_tcp, decode, single = pods
    gateway = fleet.gateway([decode], [shares, speaks_tcp])
    gateway.wait_ready()
    rng = random.Random(12)
    asked = [completion_body(random_prompt(rng, rng.randrange(20, 300))) for _ in range(24)]
    assert await texts(gateway.url, asked, concurrency=8) == await texts(single.url, asked, concurrency=8)
    for pod in pods[:3]:
        pod.wait_idle()
    sent = [pod.metric(names.HANDOFF_PAGES, side="sent") for pod in (shares, speaks_tcp)]
    assert all(sent), sent
    assert decode.metric(names.HANDOFF_PAGES, side="received") == sum(sent)
    assert mapped(decode) == 1, "of the one prefill pod that shares"


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(2, 1), (1, 2)])
async def test_ranks_map_the_ranks_that_feed_them(
    fleet: Fleet, reference: EnginePod, prefill_tp: int, decode_tp: int
) -> None:
    ranks = {"kv_transport": "ipc"}
    with serving(
        fleet,
        prefill=ranks | {"tensor_parallel_size": prefill_tp},
        decode=ranks | {"tensor_parallel_size": decode_tp},
    ) as service:
        body = completion_body(random_prompt(random.Random(prefill_tp), 200))
        answer = await ask(service.gateway.url, body, {"X-Tandem-Timing": "1"})
        alone = await ask(reference.url, body)
        assert answer["choices"][0]["text"] == alone["choices"][0]["text"]
        assert answer["tandem"]["handoff_pages"] == 13
        assert mapped(service.decode) == prefill_tp
        service.wait_idle()


@pytest.fixture
def service(fleet: Fleet) -> Iterator[Service]:
    with serving(fleet, prefill=IPC, decode=IPC) as made:
        yield made


async def test_a_prefill_pod_that_is_killed_gives_its_memory_back(service: Service) -> None:
    rng = random.Random(7)
    await ask(service.gateway.url, completion_body(random_prompt(rng, 100)))
    assert mapped(service.decode) == 1
    service.prefill.signal(signal.SIGKILL)
    service.prefill.wait_exit()
    await ask(service.gateway.url, completion_body(random_prompt(rng, 100)))
    assert mapped(service.decode) == 0
    again = service.fleet.again(service.prefill)
    again.wait_ready()
    service.decode.wait_idle()


async def test_a_decode_pod_that_is_killed_leaves_nothing_held(service: Service) -> None:
    rng = random.Random(8)
    before = set(Path("/dev/shm").iterdir())
    await ask(service.gateway.url, completion_body(random_prompt(rng, 100)))
    service.decode.signal(signal.SIGKILL)
    service.decode.wait_exit()
    again = service.again(service.decode)
    again.wait_ready()
    answer = await ask(service.gateway.url, completion_body(random_prompt(rng, 100)), {"X-Tandem-Timing": "1"})
    assert answer["tandem"]["handoff_pages"] == 7
    assert mapped(again) == 1
    service.prefill.wait_idle()
    assert set(Path("/dev/shm").iterdir()) == before
