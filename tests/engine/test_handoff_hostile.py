"""What comes to the control port that no correct peer sends: refused by name, and no request of others is harmed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import msgspec
import pytest
from support.engine_pods import Pod, eventually, pods, prompt
from support.token_engine import token_fingerprint
from support.token_model import continue_text
from tandem_contract import handoff
from tandem_runtime.engine.messages import ControlCall, ControlReply

JOB = {
    "job_id": "j",
    "request_id": "j",
    "ticket": "",
    "token_ids": [1, 2, 3, 4, 5],
    "held_tokens": 0,
    "fingerprint": asdict(token_fingerprint()),
    "decode_url": "http://127.0.0.1:2",
    "decode_incarnation": "x",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [1]}, "token_ids"),
        ({"token_ids": [1, 1000]}, "token_ids"),
        ({"token_ids": [-1, 1]}, "token_ids"),
        ({"token_ids": ["1", "2"]}, "token_ids"),
        ({"token_ids": [2**70, 1]}, ""),
        ({"held_tokens": 3}, "held_tokens"),
        ({"held_tokens": -4}, "held_tokens"),
        ({"held_tokens": 8}, "held_tokens"),
        ({"decode_url": "ftp://127.0.0.1:2"}, "decode_url"),
        ({"decode_url": "http://[::1"}, "decode_url"),
        ({"decode_url": "http://127.0.0.1:99999"}, "decode_url"),
        ({"fingerprint": {}}, "fingerprint"),
    ],
)
def test_an_impossible_job_is_refused_by_name(trio: tuple[Pod, Pod], change: dict, named: str) -> None:
    prefill, _ = trio
    status, body = prefill.wire.post(prefill, handoff.PREFILL_PATH, json.dumps(JOB | change).encode())
    assert status == 400
    assert named in body.decode()
    prefill.wait_idle()


GARBAGE = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    '{"job_id": "unknown", "token": "é"}'.encode(),
    b"null",
    b'{"decode_url": "\xff"}',
    b'{"x":' + b"[" * 100_000,
)


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_on_the_control_port_harms_no_request(trio: tuple[Pod, Pod], body: bytes) -> None:
    """Symptom elsewhere: one malformed message ends the engine's loop, and with it every stream of the pod."""
    prefill, decode = trio
    tokens = prompt(random.Random(15), 60)
    answer = decode.ask("r", tokens, 20, [prefill.ticket("r")])
    for pod in trio:
        for path in (
            handoff.PREFILL_PATH,
            handoff.RESERVE_PATH,
            handoff.FINISH_PATH,
            handoff.ACK_PATH,
            handoff.ALIVE_PATH,
            "/elsewhere",
        ):
            status, _ = pod.wire.post(pod, path, body)
            assert status in (200, 400, 404)
    assert answer.wait() == continue_text(tokens, 20)
    prefill.wait_idle()
    decode.wait_idle()


def test_a_wrong_token_ends_nobody_elses_job(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    prefill.runner.gate.clear()
    tokens = prompt(random.Random(16), 60)
    answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
    eventually(lambda: decode.call(lambda: decode.scheduler.counters.pages_used))
    [job_id] = prefill.call(lambda: list(prefill.prefill._jobs))
    end = json.dumps({"job_id": job_id, "token": "é", "error": "stop"}).encode()
    assert prefill.wire.post(prefill, handoff.ACK_PATH, end)[0] == 404
    assert prefill.wire.post(decode, handoff.FINISH_PATH, end)[0] == 200
    prefill.runner.gate.set()
    assert answer.wait() == continue_text(tokens, 5)
    assert decode.decode.outcomes == {"received/ok": 1}


@pytest.mark.parametrize("ranks", [0, -1, 1025, 2**40])
def test_an_impossible_number_of_ranks_costs_the_handoff_alone(trio: tuple[Pod, Pod], ranks: int) -> None:
    prefill, decode = trio
    reserve = decode.engine._routes[handoff.RESERVE_PATH]

    def lying(call: ControlCall) -> None:
        ask = json.loads(call.body) | {"prefill_tensor_parallel": ranks}
        reserve(msgspec.structs.replace(call, body=json.dumps(ask).encode()))

    decode.engine._routes[handoff.RESERVE_PATH] = lying
    tokens = prompt(random.Random(17), 60)
    assert decode.ask("r", tokens, 5, [prefill.ticket("r")]).wait() == continue_text(tokens, 5)
    assert decode.decode.outcomes == {"received/prefill_error": 1}
    prefill.wait_idle()
    assert prefill.prefill.outcomes == {"sent/withdrawn": 1}


def test_a_grant_that_does_not_fit_ends_the_job() -> None:
    with pods(("prefill", "1", {}), ("prefill", "2", {})) as (prefill, liar):
        lie = {"job_id": "j", "slots": []}
        liar.engine._routes[handoff.RESERVE_PATH] = lambda call: liar.engine._control.answer(call, 200, lie)
        body = json.dumps(JOB | {"decode_url": liar.url}).encode()
        assert prefill.wire.post(prefill, handoff.PREFILL_PATH, body)[0] == 202
        eventually(lambda: prefill.prefill.outcomes.get("sent/bad_grant"))
        prefill.wait_idle()


def test_a_grant_that_is_no_json_ends_the_job() -> None:
    """Symptom: a pod's address was reused by a web server, whose HTML ended the prefill pod's engine."""
    with pods(("prefill", "1", {}), ("prefill", "2", {})) as (prefill, stranger):
        stranger.engine._routes[handoff.RESERVE_PATH] = lambda call: stranger.engine._publish(
            ControlReply(call_id=call.call_id, status=200, body=b"<html>\xff")
        )
        body = json.dumps(JOB | {"decode_url": stranger.url}).encode()
        assert prefill.wire.post(prefill, handoff.PREFILL_PATH, body)[0] == 202
        eventually(lambda: prefill.prefill.outcomes.get("sent/bad_grant"))
        prefill.wait_idle()
