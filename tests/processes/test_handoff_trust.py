"""Who is listened to between the pods: tickets, signed control messages, layouts that must agree."""

from __future__ import annotations

import random
import socket
import time
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest
from processes.asking import ask, completion_body, random_prompt
from processes.faults import assert_right, ticketed
from support.serving import EnginePod, Fleet
from tandem_contract import handoff, headers
from tandem_contract import metrics as names
from tandem_contract.ticket import Ticket, sign, sign_message

pytestmark = pytest.mark.processes


async def test_forged_expired_and_replayed_tickets(
    fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod
) -> None:
    """They cost nobody an answer, and make the decode pod contact nobody."""
    _, decode = pair
    body = completion_body(random_prompt(random.Random(6), 100))
    with socket.create_server(("127.0.0.1", 0)) as victim:
        victim.setblocking(False)
        ticket = Ticket(
            request_id="r",
            prefill_host="127.0.0.1",
            prefill_port=victim.getsockname()[1],
            prefill_incarnation="i",
            nonce="n",
            expires_at=time.time() + 60,
        )
        for text, reason in (
            (sign(ticket, b"another-key-of-enough-bytes"), "signature"),
            (sign(replace(ticket, expires_at=time.time() - 150), fleet.key), "expired"),
            ("nonsense", "malformed"),
        ):
            answer = await ask(decode.url, body, {headers.TICKET: text, headers.REQUEST_ID: "r"})
            await assert_right(answer, reference, body)
            assert decode.metric(names.TICKETS_REFUSED, reason=reason) == 1
        with pytest.raises(BlockingIOError):
            victim.accept()


async def test_a_ticket_is_honoured_once(fleet: Fleet, pair: tuple[EnginePod, EnginePod], reference: EnginePod) -> None:
    prefill, decode = pair
    sent = ticketed(fleet, prefill, "replayed")
    for seed, prefill_pod in ((7, prefill.status()["name"]), (8, None)):
        body = completion_body(random_prompt(random.Random(seed), 100))
        answer = await ask(decode.url, body, sent | {headers.TIMING: "1"})
        await assert_right(answer, reference, body)
        assert answer["tandem"]["prefill_pod"] == prefill_pod
    assert decode.metric(names.TICKETS_REFUSED, reason="replayed") == 1
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
