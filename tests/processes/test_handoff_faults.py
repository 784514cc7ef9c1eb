"""What fails between prefill and decode pods: the text stays right, nothing leaks on either side, nothing hangs."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from processes.asking import ask, ask_status, completion_body, random_prompt
from support.fault_proxy import FaultProxy
from support.serving import EnginePod, Fleet, free_port
from tandem_contract import handoff, headers
from tandem_contract import metrics as names
from tandem_contract.ticket import sign_message

pytestmark = pytest.mark.processes

PROXY_HOST = "127.0.0.2"
"""Where a decode pod behind a fault proxy is reached; the pod itself listens on 127.0.0.1."""
LONG = 7500
"""Tokens whose pages (5.8 MB) no socket buffers hold: a held transfer is not over yet."""
TINY_STEPS = {"max_num_batched_tokens": 64, "max_num_seqs": 8}
"""Prompts take many chunks, so that there is a middle to fail in."""


@pytest.fixture(scope="module")
def reference(fleet: Fleet) -> EnginePod:
    """One process doing both: says what the right text is."""
    pod = fleet.pod("both")
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def pair(fleet: Fleet) -> tuple[EnginePod, EnginePod]:
    prefill = fleet.pod("prefill", handoff_lease_seconds=3.0, **TINY_STEPS)
    decode = fleet.pod("decode", **TINY_STEPS)
    prefill.wait_ready()
    decode.wait_ready()
    return prefill, decode


def ticketed(fleet: Fleet, prefill: EnginePod, request_id: str, **options: Any) -> dict[str, str]:
    return {headers.REQUEST_ID: request_id, headers.TICKET: fleet.ticket(prefill, request_id, **options)}


async def assert_right(answer: dict[str, Any], reference: EnginePod, body: dict[str, Any]) -> None:
    right = await ask(reference.url, body)
    assert answer["choices"][0]["text"] == right["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == right["usage"]["completion_tokens"]


class ProxiedDecode:
    """A decode pod whose control and KV data ports peers reach only through fault proxies."""

    def __init__(self, fleet: Fleet, **faults: Any) -> None:
        control, data = free_port(), free_port()
        self.pod: EnginePod = fleet.pod(
            "decode", handoff_port=control, kv_data_port=data, advertise_host=PROXY_HOST, **TINY_STEPS
        )
        self.data = FaultProxy((PROXY_HOST, data), ("127.0.0.1", data), **faults)
        self._control = FaultProxy((PROXY_HOST, control), ("127.0.0.1", control))
        self.pod.wait_ready()

    def close(self) -> None:
        self.data.close()
        self._control.close()
        self.pod.kill()


@contextmanager
def proxied_decode(fleet: Fleet, **faults: Any) -> Iterator[ProxiedDecode]:
    made = ProxiedDecode(fleet, **faults)
    try:
        yield made
    finally:
        made.close()


async def holding(proxy: FaultProxy) -> None:
    assert await asyncio.to_thread(proxy.holding.wait, 30), "nothing was transferred"


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


async def test_a_frozen_engine_makes_its_pod_unready(fleet: Fleet) -> None:
    """Symptom: the engine process was frozen, its pod stayed Ready, and the gateway went on picking it."""
    pod = fleet.pod("both")
    pod.wait_ready()
    engine = pod.child("tandem-engine")
    engine.suspend()
    await until(lambda: not pod.status()["ready"])
    engine.resume()
    await until(lambda: pod.status()["ready"])
    pod.kill()


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


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "the stage was never reached"


async def test_forged_expired_and_replayed_tickets(fleet: Fleet, pair: tuple[EnginePod, EnginePod]) -> None:
    prefill, decode = pair
    body = completion_body(random_prompt(random.Random(6), 100))
    for sent, word in (
        (ticketed(fleet, prefill, "forged", key=b"another-key-of-enough-bytes"), "signature"),
        (ticketed(fleet, prefill, "expired", ttl_s=-1.0), "expired"),
        ({headers.TICKET: "nonsense"}, "ticket"),
    ):
        status, answer = await ask_status(decode.url, body, sent)
        assert status == 401
        assert word in answer["error"]["message"]
    sent = ticketed(fleet, prefill, "replayed")
    assert (await ask_status(decode.url, body, sent))[0] == 200
    status, answer = await ask_status(decode.url, body, sent)
    assert status == 401
    assert "already used" in answer["error"]["message"]
    decode.wait_idle()


def prefill_job(
    fleet: Fleet, prefill: EnginePod, ticket: str, request_id: str, **fingerprint: Any
) -> handoff.PrefillJob:
    """A job for tokens of the tiny llama, with fields of its fingerprint replaced."""
    values: dict[str, Any] = {
        "model": "0" * 32,
        "kv_dtype": "float32",
        "num_layers": 3,
        "num_kv_heads": 2,
        "head_dim": 16,
        "page_size": 16,
        "rope": "",
        "tensor_parallel": 1,
    }
    return handoff.PrefillJob(
        job_id=request_id,
        request_id=request_id,
        ticket=ticket,
        token_ids=[1, 2, 3],
        held_tokens=0,
        fingerprint=handoff.LayoutFingerprint(**(values | fingerprint)),
        decode_url="http://127.0.0.1:1",
        decode_incarnation="none",
    )


async def post_job(fleet: Fleet, prefill: EnginePod, job: handoff.PrefillJob) -> tuple[int, dict[str, Any]]:
    """Signed as another pod of the service would sign it."""
    body = msgspec.json.encode(job)
    return await post_control(prefill, handoff.PREFILL_PATH, body, sign_message(handoff.PREFILL_PATH, body, fleet.key))


async def post_control(pod: EnginePod, path: str, body: bytes, signature: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(headers={headers.SIGNATURE: signature}) as session,
        session.post(pod.control_url + path, data=body) as response,
    ):
        return response.status, await response.json()


async def test_only_pods_of_the_service_are_listened_to(fleet: Fleet, pair: tuple[EnginePod, EnginePod]) -> None:
    """Symptom: whoever reached the control port could void every job of a decode pod with one probe."""
    body = msgspec.json.encode(handoff.AliveProbe(decode_url="http://127.0.0.1:1", decode_incarnation="x", job_ids=[]))
    prefill, _ = pair
    right = sign_message(handoff.ALIVE_PATH, body, fleet.key)
    assert (await post_control(prefill, handoff.ALIVE_PATH, body, right))[0] == 200
    for signature in (
        "",
        "1.x",
        sign_message(handoff.ALIVE_PATH, body, b"another-key-of-enough-bytes"),
        sign_message(handoff.ACK_PATH, body, fleet.key),
        sign_message(handoff.ALIVE_PATH, body + b" ", fleet.key),
        sign_message(handoff.ALIVE_PATH, body, fleet.key, now=time.time() - 1000),
    ):
        for pod in pair:
            assert (await post_control(pod, handoff.ALIVE_PATH, body, signature))[0] == 401


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


async def test_prefill_pods_take_no_job_without_a_good_ticket(fleet: Fleet, pair: tuple[EnginePod, EnginePod]) -> None:
    prefill, _ = pair
    for ticket in (
        "",
        "v1.x.y",
        fleet.ticket(prefill, "j", key=b"another-key-of-enough-bytes"),
        fleet.ticket(prefill, "other"),
    ):
        status, answer = await post_job(fleet, prefill, prefill_job(fleet, prefill, ticket, "j"))
        assert (status, "ticket" in answer["error"]) == (401, True)
    # Replayed straight at the prefill pod, past the decode pod's own ledger.
    ticket = fleet.ticket(prefill, "twice")
    assert (await post_job(fleet, prefill, prefill_job(fleet, prefill, ticket, "twice")))[0] == 409
    assert (await post_job(fleet, prefill, prefill_job(fleet, prefill, ticket, "twice")))[0] == 401
    prefill.wait_idle()


@pytest.mark.parametrize("field", ["kv_dtype", "num_layers", "num_kv_heads", "head_dim", "page_size"])
async def test_a_layout_mismatch_names_the_field(fleet: Fleet, pair: tuple[EnginePod, EnginePod], field: str) -> None:
    prefill, _ = pair
    model = await own_model_digest(fleet, prefill)
    wrong = "float16" if field == "kv_dtype" else 5
    job = prefill_job(fleet, prefill, fleet.ticket(prefill, field), field, model=model, **{field: wrong})
    status, answer = await post_job(fleet, prefill, job)
    assert status == 409
    assert answer["field"] == field
    assert answer["decode"] == str(wrong)


async def own_model_digest(fleet: Fleet, prefill: EnginePod) -> str:
    """The prefill pod's own, from its refusal of another one."""
    request_id = f"digest-{time.monotonic_ns()}"
    job = prefill_job(fleet, prefill, fleet.ticket(prefill, request_id), request_id)
    status, answer = await post_job(fleet, prefill, job)
    assert (status, answer["field"]) == (409, "model")
    return str(answer["prefill"])


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
