"""What fails between prefill and decode pods: the text stays right, nothing leaks on either side, nothing hangs."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import Any

import aiohttp
import pytest
from processes.asking import ask, ask_status, completion_body, random_prompt
from processes.faults import LONG, TINY_STEPS, assert_right, holding, proxied_decode, ticketed, until
from support.serving import EnginePod, Fleet
from tandem_contract import headers
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes


async def test_kill_of_prefill_mid_transfer(fleet: Fleet, reference: EnginePod) -> None:
    prefill = fleet.pod("prefill", **TINY_STEPS)
    with proxied_decode(fleet, hold_after=200_000) as decode:
        prefill.wait_ready()
        body = completion_body(random_prompt(random.Random(1), LONG))
        asking = asyncio.create_task(ask(decode.pod.url, body, ticketed(fleet, prefill, "kill")))
        await holding(decode.data)
        prefill.kill()
        decode.data.release()
        await assert_right(await asking, reference, body)
        assert decode.pod.metric(names.HANDOFF_FALLBACKS) == 1
        decode.pod.wait_idle()


async def test_a_second_prefill_pod_takes_over(fleet: Fleet, reference: EnginePod) -> None:
    first, second = (fleet.pod("prefill", **TINY_STEPS) for _ in range(2))
    with proxied_decode(fleet, hold_after=200_000) as decode:
        first.wait_ready()
        second.wait_ready()
        body = completion_body(random_prompt(random.Random(20), LONG))
        tickets = ",".join(fleet.ticket(pod, "over") for pod in (first, second))
        sent = {headers.REQUEST_ID: "over", headers.TICKET: tickets, headers.TIMING: "1"}
        asking = asyncio.create_task(ask(decode.pod.url, body, sent))
        await holding(decode.data)
        first.kill()
        decode.data.release()
        answer = await asking
        await assert_right(answer, reference, body)
        assert answer["tandem"]["prefill_pod"] == second.status()["name"]
        assert decode.pod.metric(names.HANDOFF_FALLBACKS) == 0
        decode.pod.wait_idle()
        second.wait_idle()
    second.kill()


async def test_sigstop_of_prefill_mid_transfer(fleet: Fleet, reference: EnginePod) -> None:
    prefill = fleet.pod("prefill", handoff_lease_seconds=2.0, **TINY_STEPS)
    with proxied_decode(fleet, hold_after=200_000) as decode:
        prefill.wait_ready()
        body = completion_body(random_prompt(random.Random(2), LONG))
        began = time.monotonic()
        asking = asyncio.create_task(ask(decode.pod.url, body, ticketed(fleet, prefill, "stop")))
        await holding(decode.data)
        prefill.signal(signal.SIGSTOP)
        await assert_right(await asking, reference, body)
        assert time.monotonic() - began < 30
        decode.data.release()
        prefill.signal(signal.SIGCONT)
        decode.pod.wait_idle()
        prefill.wait_idle()
    prefill.kill()


async def test_restart_of_decode_while_prefill_holds_its_pages(fleet: Fleet, reference: EnginePod) -> None:
    prefill = fleet.pod("prefill", handoff_lease_seconds=2.0, **TINY_STEPS)
    with proxied_decode(fleet, hold_after=200_000) as decode:
        prefill.wait_ready()
        body = completion_body(random_prompt(random.Random(3), LONG))
        asking = asyncio.create_task(ask(decode.pod.url, body, ticketed(fleet, prefill, "gone")))
        await holding(decode.data)
        await until(lambda: prefill.status()["kv_pages_used"] > 0)
        decode.pod.kill()
        with pytest.raises((aiohttp.ClientError, AssertionError)):
            await asking
        decode.data.release()
        prefill.wait_idle()
    again = fleet.pod("decode")
    again.wait_ready()
    await assert_right(await ask(again.url, body, ticketed(fleet, prefill, "again")), reference, body)
    assert again.metric(names.HANDOFF_PAGES, side="received") == -(-(LONG - 1) // 16)
    again.kill()
    prefill.kill()


async def test_a_corrupted_page_is_refused(
    fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod
) -> None:
    prefill, _ = pair
    with proxied_decode(fleet, flip_at=300_000) as decode:
        body = completion_body(random_prompt(random.Random(4), 1000))
        answer = await ask(decode.pod.url, body, ticketed(fleet, prefill, "corrupt"))
        await assert_right(answer, reference, body)
        assert decode.pod.metric(names.HANDOFFS, side="received", outcome="ok") == 0
        assert decode.pod.metric(names.HANDOFF_FALLBACKS) == 1
        decode.pod.wait_idle()
        prefill.wait_idle()


@pytest.mark.parametrize("stage", ["queued", "mid-prefill", "mid-transfer", "mid-decode"])
async def test_client_disconnect(
    fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod, stage: str
) -> None:
    prefill, decode = pair
    rng = random.Random(stage)
    body = completion_body(random_prompt(rng, 3000), max_tokens=4000, stream=True)
    busy = []
    if stage == "queued":
        # Work in front of it, on the prefill pod itself.
        long = completion_body(random_prompt(rng, 6000), max_tokens=1)
        busy = [asyncio.create_task(ask(prefill.url, long)) for _ in range(2)]
        await until(lambda: prefill.status()["waiting_tokens"] > 1000)
    await disconnect_at(stage, decode, prefill, body, ticketed(fleet, prefill, f"gone-{stage}"))
    await asyncio.gather(*busy)
    decode.wait_idle()
    prefill.wait_idle()
    after = completion_body(random_prompt(rng, 500))
    answer = await ask(decode.url, after, ticketed(fleet, prefill, f"after-{stage}"))
    await assert_right(answer, reference, after)


async def disconnect_at(
    stage: str, decode: EnginePod, prefill: EnginePod, body: dict[str, Any], sent: dict[str, str]
) -> None:
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(decode.url + "/v1/completions", json=body, headers=sent))
        match stage:
            case "queued":
                await until(lambda: decode.status()["waiting"] == 1)
            case "mid-prefill":
                await until(lambda: prefill.status()["running"] == 1)
            case "mid-transfer":
                await until(lambda: decode.status()["kv_pages_used"] > 0)
            case "mid-decode":
                response = await asking
                async for line in response.content:
                    if line.startswith(b"data:"):
                        break
                response.close()
        asking.cancel()


async def test_a_prefill_pod_that_drains_finishes_its_transfers(fleet: Fleet, reference: EnginePod) -> None:
    """Symptom: every rolling update of prefill pods cut off the handoffs under way."""
    prefill = fleet.pod("prefill", **TINY_STEPS)
    with proxied_decode(fleet, hold_after=200_000) as decode:
        prefill.wait_ready()
        body = completion_body(random_prompt(random.Random(21), LONG))
        asking = asyncio.create_task(ask(decode.pod.url, body, ticketed(fleet, prefill, "drain")))
        await holding(decode.data)
        await until(lambda: prefill.status()["waiting"] + prefill.status()["running"] == 0)
        stopping = asyncio.create_task(asyncio.to_thread(prefill.stop))
        await until(lambda: "draining" in prefill.log())
        decode.data.release()
        await assert_right(await asking, reference, body)
        assert decode.pod.metric(names.HANDOFFS, side="received", outcome="ok") == 1
        assert await stopping == 0


async def test_cross_wired_models_fall_back(
    fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod, other_model: Any
) -> None:
    _, decode = pair
    stranger = fleet.pod("prefill", model=str(other_model))
    stranger.wait_ready()
    body = completion_body(random_prompt(random.Random(7), 300))
    answer = await ask(decode.url, body, ticketed(fleet, stranger, "crossed"))
    await assert_right(answer, reference, body)
    assert decode.metric(names.HANDOFF_FALLBACKS, reason="mismatch") == 1
    decode.wait_idle()
    stranger.kill()


async def test_a_prefill_pool_of_zero(fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod) -> None:
    _, decode = pair
    gateway = fleet.gateway([decode], [])
    gateway.wait_ready()
    body = completion_body(random_prompt(random.Random(8), 700))
    await assert_right(await ask(gateway.url, body), reference, body)
    gateway.stop()


async def test_a_full_decode_pod_passes_the_request_on(
    fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod
) -> None:
    prefill, decode = pair
    small = fleet.pod("decode", max_waiting=1, max_num_seqs=1, max_num_batched_tokens=64)
    small.wait_ready()
    gateway = fleet.gateway([small, decode], [prefill], status_interval=30.0, strategy="RoundRobin")
    gateway.wait_ready()
    long = completion_body(random_prompt(random.Random(9), 64), max_tokens=6000)
    blocking = [asyncio.create_task(ask_status(small.url, long))]
    await until(lambda: small.status()["running"] == 1)
    blocking.append(asyncio.create_task(ask_status(small.url, long)))
    await until(lambda: small.status()["waiting"] == 1)
    status, refusal = await ask_status(small.url, long)
    assert (status, refusal["error"]["code"]) == (503, "engine_overloaded")
    bodies = [completion_body(random_prompt(random.Random(seed), 200)) for seed in range(4)]
    for body in bodies:
        await assert_right(await ask(gateway.url, body), reference, body)
    assert gateway.metric(names.GATEWAY_RETRIES, reason="busy") >= 1
    for task in blocking:
        task.cancel()
    await asyncio.gather(*blocking, return_exceptions=True)
    gateway.stop()
    small.wait_idle()
    small.kill()
