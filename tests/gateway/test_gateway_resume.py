"""Streams that go on at another pod, from fake engines, over real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.given_endpoints import GivenEndpoints
from gateway.harness import CHAT, Client, gateway_before
from gateway.live_engine import LiveEngine
from tandem_contract import headers

RESUMES = "tandem_gateway_stream_resumes_total"
LOST = "tandem_gateway_streams_lost_total"
UNPROTECTED = "tandem_gateway_streams_unprotected_total"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "ticket-keys").write_text("k" * 32 + "\n")
    return {"ticket_key_file": str(tmp_path / "ticket-keys")}


async def resumes(client: Client, cause: str) -> float:
    return await client.metric(f'{RESUMES}{{cause="{cause}"}}')


async def test_a_broken_stream_goes_on_elsewhere_to_the_byte(keys: dict[str, str]) -> None:
    first, second = LiveEngine(words=40, break_after=[0, 7]), LiveEngine(words=40, break_after=[5])
    async with first, second, gateway_before(first, second, **keys) as client:
        for _ in range(3):
            answer = await client.chat(stream=True)
            assert (answer.status, answer.body) == (200, stream_bytes(40))
        assert await resumes(client, "broken") == len(first.resumed_from) + len(second.resumed_from) >= 2


async def test_a_stream_whose_pod_goes_once_all_is_said_is_whole(keys: dict[str, str]) -> None:
    """Its ending came twice: another pod was asked for what was left of it."""
    first, second = LiveEngine(words=5, cut_at_end=True), LiveEngine(words=5, cut_at_end=True)
    async with first, second, gateway_before(first, second, **keys) as client:
        for _ in range(5):
            answer = await client.chat(stream=True)
            assert (answer.status, answer.body) == (200, stream_bytes(5))
        assert first.resumed_from == second.resumed_from == []


async def test_no_record_reaches_a_client_and_no_header_of_ours_a_pod(keys: dict[str, str]) -> None:
    async with LiveEngine() as engine, gateway_before(engine, **keys) as client:
        forged = {headers.STREAM: "resume", headers.SIGNATURE: "1.forged"}
        answer = await client.chat(stream=True, headers=forged)
        assert answer.body == stream_bytes(engine.words)
        assert headers.STREAM not in answer.headers
        assert engine.seen[-1].headers[headers.STREAM] == "live"
        plain = await client.chat(headers=forged)
        assert plain.status == 200
        assert headers.STREAM not in engine.seen[-1].headers
        assert headers.SIGNATURE not in engine.seen[-1].headers


async def test_a_stream_waits_for_its_only_pod_to_come_back(keys: dict[str, str]) -> None:
    async with LiveEngine(words=20, break_after=[6]) as engine, gateway_before(engine, **keys) as client:
        assert (await client.chat(stream=True)).body == stream_bytes(20)
        assert engine.resumed_from == [6]


async def test_without_a_pod_a_stream_ends_with_an_error_in_bounded_time(keys: dict[str, str]) -> None:
    async with LiveEngine(words=20, break_after=[6]) as engine:
        busy = web.json_response({"error": {"message": "full", "code": "engine_overloaded"}}, status=503)
        async with gateway_before(engine, resume_timeout=0.5, **keys) as client:
            asking = asyncio.create_task(client.chat(stream=True))
            await engine.arrived.wait()
            engine.answer = busy
            answer = await asyncio.wait_for(asking, 20)
            whole, _, error = answer.body.partition(b'data: {"error"')
            assert stream_bytes(20).startswith(whole)
            assert b"[DONE]" not in answer.body
            assert json.loads(b'{"error"' + error)["error"]["code"] == "no_pod_available"
            assert await client.metric(f'{LOST}{{reason="no_pod"}}') == 1


@pytest.mark.parametrize(("breaks", "reason", "words"), [([3, 0, 0], "deaths", 3), ([3, 3, 3, 3], "limit", 12)])
async def test_a_stream_that_kills_pods_is_given_up(
    keys: dict[str, str], breaks: list[int], reason: str, words: int
) -> None:
    """At once when two pods in a row fail without one more word, and after --max-resumes in any case."""
    fleet = [LiveEngine(status(f"d{index}"), words=20, break_after=breaks) for index in range(5)]
    async with fleet[0], fleet[1], fleet[2], fleet[3], fleet[4]:
        async with gateway_before(*fleet, max_resumes=3, **keys) as client:
            answer = await client.chat(stream=True)
            shown, _, error = answer.body.partition(b'data: {"error"')
            assert shown + b"data: [DONE]\n\n" == stream_bytes(words)
            assert b'"code":"pod_failed"' in error
            assert await client.metric(f'{LOST}{{reason="{reason}"}}') == 1
            assert breaks == [], "no more pods than these were asked"


async def test_a_draining_pod_hands_its_streams_over(keys: dict[str, str]) -> None:
    first, second = LiveEngine(words=30, freeze_after=4), LiveEngine(status("spare", ready=False), words=30)
    async with first, second, gateway_before(first, second, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        first.status = status(draining=True, ready=False)
        await eventually(lambda: _draining(client))
        assert not asking.done(), "nobody can take over yet: the stream stays"
        second.status = status("spare")
        assert (await asking).body == stream_bytes(30)
        assert await resumes(client, "leaving") == 1
        await asyncio.wait_for(first.cancelled.wait(), 20)


def refusing(status: int, code: str) -> web.Response:
    return web.json_response({"error": {"message": "no", "code": code}}, status=status)


@pytest.mark.parametrize(
    ("code", "refusal"), [(409, "other_answer"), (400, "invalid_request"), (503, "engine_overloaded"), (503, "queue")]
)
async def test_a_stream_that_no_other_pod_takes_stays_at_its_draining_pod(
    keys: dict[str, str], code: int, refusal: str
) -> None:
    """Its pod was let go of first, and the stream was lost although the pod would have ended it."""
    first = LiveEngine(words=30, freeze_after=4)
    second = LiveEngine(status("spare", ready=False), words=30, answer=refusing(code, refusal))
    if refusal == "queue":
        second.answer, second.hold = None, asyncio.Event()
    async with first, second, gateway_before(first, second, resume_timeout=0.3, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        second.status = status("spare")
        first.status = status(draining=True, ready=False)
        await asyncio.wait_for(second.arrived.wait(), 20)
        assert not first.cancelled.is_set()
        first.thawed.set()
        answer = await asyncio.wait_for(asking, 20)
        assert answer.body == stream_bytes(30)
        assert second.resumed_from == []
        assert await resumes(client, "leaving") == 0
        assert await client.metric(LOST) == 0


async def test_a_draining_pods_stream_is_offered_again(keys: dict[str, str]) -> None:
    """The other pod was full at first."""
    first = LiveEngine(words=30, freeze_after=4)
    second = LiveEngine(status("spare", ready=False), words=30, answer=refusing(503, "engine_overloaded"))
    async with first, second, gateway_before(first, second, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        second.status = status("spare")
        first.status = status(draining=True, ready=False)
        await asyncio.wait_for(second.arrived.wait(), 20)
        second.answer = None
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert second.resumed_from == [4]
        assert await resumes(client, "leaving") == 1
        await asyncio.wait_for(first.cancelled.wait(), 20)


async def test_a_draining_pods_stream_goes_past_a_pod_that_refuses_it(keys: dict[str, str]) -> None:
    first = LiveEngine(words=30, freeze_after=4)
    fleet = [LiveEngine(status(name, ready=False), words=30) for name in ("refuses", "takes")]
    fleet[0].answer = refusing(409, "other_answer")
    async with first, fleet[0], fleet[1], gateway_before(first, *fleet, strategy="RoundRobin", **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        fleet[0].status = status("refuses")
        first.status = status(draining=True, ready=False)
        await asyncio.wait_for(fleet[0].arrived.wait(), 20)
        fleet[1].status = status("takes")
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert fleet[1].resumed_from == [4]
        assert len(fleet[0].posts()) == 1, "one that has refused a stream is not asked again"


async def test_a_pod_that_dies_while_another_is_asked_loses_its_stream_to_it(keys: dict[str, str]) -> None:
    first = LiveEngine(words=30, freeze_after=4, break_thawed=True)
    second = LiveEngine(status("spare", ready=False), words=30, hold=asyncio.Event())
    async with first, second, gateway_before(first, second, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        second.status = status("spare")
        first.status = status(draining=True, ready=False)
        await asyncio.wait_for(second.arrived.wait(), 20)
        first.thawed.set()
        assert second.hold is not None
        second.hold.set()
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert second.resumed_from == [4]


async def test_a_request_without_an_answer_yet_stays_at_its_draining_pod(keys: dict[str, str]) -> None:
    """It was taken away from the pod that had it in its queue, and answered with a 502 as no other had room."""
    first, full = LiveEngine(words=30, hold=asyncio.Event()), LiveEngine(status("full", ready=False))
    full.answer = refusing(503, "engine_overloaded")
    async with first, full, gateway_before(first, full, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.arrived.wait()
        full.status = status("full")
        first.status = status(draining=True, ready=False)
        await eventually(lambda: _draining(client))
        assert first.hold is not None
        first.hold.set()
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)


async def test_a_broken_stream_that_one_pod_refuses_goes_on_at_another(keys: dict[str, str]) -> None:
    """The first refusal ended it, whoever else there was."""
    first = LiveEngine(words=30, freeze_after=4, break_thawed=True)
    fleet = [LiveEngine(status(name, ready=False), words=30) for name in ("refuses", "takes")]
    fleet[0].answer = refusing(409, "other_answer")
    async with first, fleet[0], fleet[1], gateway_before(first, *fleet, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        first.answer = refusing(503, "engine_overloaded")
        fleet[0].status = status("refuses")
        await eventually(lambda: _ready(client, 2))
        first.thawed.set()
        await asyncio.wait_for(fleet[0].arrived.wait(), 20)
        fleet[1].status = status("takes")
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert fleet[1].resumed_from == [4]


async def test_a_broken_stream_that_every_pod_refuses_ends_soon(keys: dict[str, str]) -> None:
    first = LiveEngine(words=30, freeze_after=4, break_thawed=True)
    async with first, gateway_before(first, resume_timeout=60.0, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        first.answer = refusing(409, "other_answer")
        first.thawed.set()
        answer = await asyncio.wait_for(asking, 20)
        assert b'"code":"pod_failed"' in answer.body
        assert await client.metric(f'{LOST}{{reason="refused"}}') == 1


async def test_with_too_many_records_the_longest_stream_loses_its_net(keys: dict[str, str]) -> None:
    """Eight megabytes of each of four thousand streams were no bound at all."""
    long = LiveEngine(words=200, freeze_after=120, break_thawed=True)
    async with long, gateway_before(long, max_journal_bytes=400, max_resumes=1, **keys) as client:
        first = asyncio.create_task(client.chat(stream=True))
        await long.frozen.wait()
        long.frozen.clear()
        long.freeze_after = 40
        second = asyncio.create_task(client.chat(stream=True))
        await long.frozen.wait()
        assert await client.metric(f'{UNPROTECTED}{{reason="memory"}}') == 1
        assert await client.metric("tandem_gateway_journal_bytes") == len(",".join(map(str, range(40))))
        long.thawed.set()
        one, other = await asyncio.wait_for(asyncio.gather(first, second), 20)
        shown, _, error = one.body.partition(b'data: {"error"')
        assert stream_bytes(200).startswith(shown)
        assert b'"code":"pod_failed"' in error
        assert await client.metric(f'{LOST}{{reason="no_records"}}') == 1
        assert long.resumed_from == [40]
        assert other.body.startswith(stream_bytes(41)[: -len(b"data: [DONE]\n\n")])
        assert await client.metric("tandem_gateway_journal_bytes") == 0


async def test_a_resumed_stream_outlives_its_pods_listing(keys: dict[str, str]) -> None:
    """It passed for unanswered to its end: the pod that had it now left, and it broke off where it would have ended."""
    first = LiveEngine(words=30, freeze_after=4)
    second = LiveEngine(status("spare", ready=False), words=30, freeze_after=4)
    endpoints = GivenEndpoints(first, second)
    async with first, second, gateway_before(first, second, endpoints=endpoints, resume_timeout=1.0, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        first.status, second.status = status(draining=True, ready=False), status("spare")
        await eventually(lambda: _resumed(client))
        endpoints.set()
        second.thawed.set()
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert second.resumed_from == [4]


async def test_a_gateway_that_ends_leaves_streams_where_they_are(keys: dict[str, str]) -> None:
    """Ctrl-C ends gateway and pods at once: a stream moved then found no pod left, and was lost half a minute later."""
    first, second = LiveEngine(words=30, freeze_after=4), LiveEngine(status("spare", ready=False), words=30)
    async with first, second, gateway_before(first, second, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        ending = asyncio.create_task(client.gateway.drain(1.0))
        first.status, second.status = status(draining=True, ready=False), status("spare")
        await eventually(lambda: _draining(client))
        answer = await asking
        assert b"shutting_down" in answer.body, "its pod never went on, and the drain timeout came"
        assert second.resumed_from == []
        await ending


async def test_a_stream_without_records_stays_at_its_draining_pod(keys: dict[str, str]) -> None:
    """Such a pod has no ticket keys, or is older than live streams; moving its stream would end it."""
    plain, spare = FakeEngine(words=30, hold_after_first=asyncio.Event()), LiveEngine(status("spare", ready=False))
    async with plain, spare, gateway_before(plain, spare, **keys) as client:
        body = {"model": "m", "stream": True, "messages": []}
        async with client.session.post(client.url + CHAT, json=body) as answer:
            first = await answer.content.readany()
            spare.status = status("spare")
            plain.status = status(draining=True, ready=False)
            await eventually(lambda: _draining(client))
            assert plain.hold_after_first is not None
            plain.hold_after_first.set()
            assert first + await answer.content.read() == stream_bytes(30)
        assert spare.seen == []


@pytest.mark.parametrize("continuation", ["other", ""])
async def test_only_pods_that_answer_alike_take_over(keys: dict[str, str], continuation: str) -> None:
    """Pods of equal weights took over, whatever their chat template."""
    first, other = LiveEngine(words=30, break_after=[4]), LiveEngine(status(continuation=continuation), words=30)
    async with first, other, gateway_before(first, other, resume_timeout=5.0, **keys) as client:
        for _ in range(4):
            assert (await client.chat(stream=True)).body == stream_bytes(30)
        assert other.resumed_from == []
        assert first.resumed_from == [4]


async def test_a_stalled_stream_goes_on_elsewhere(keys: dict[str, str]) -> None:
    first, second = LiveEngine(words=30, freeze_after=4), LiveEngine(status("spare", ready=False), words=30)
    async with first, second, gateway_before(first, second, stall_timeout=0.4, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        second.status = status("spare")
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert await resumes(client, "stalled") >= 1


async def test_a_pod_that_restarted_unseen_loses_its_streams_to_others(keys: dict[str, str]) -> None:
    first, second = LiveEngine(words=30, freeze_after=4), LiveEngine(status("spare", ready=False), words=30)
    async with first, second, gateway_before(first, second, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.frozen.wait()
        second.status = status("spare")
        first.status = status(incarnation="2")
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(30)
        assert await resumes(client, "pod_down") >= 1


async def test_a_client_that_leaves_while_its_stream_waits_leaves_nothing(keys: dict[str, str]) -> None:
    async with LiveEngine(words=30, break_after=[4]) as engine, gateway_before(engine, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await engine.arrived.wait()
        engine.hold = asyncio.Event()
        engine.answer = web.json_response({}, status=503)
        await eventually(lambda: _in_flight(client, 1))
        asking.cancel()
        await eventually(lambda: _in_flight(client, 0))


async def test_max_resumes_zero_asks_for_no_live_streams(keys: dict[str, str]) -> None:
    async with LiveEngine() as engine, gateway_before(engine, max_resumes=0, **keys) as client:
        await client.chat(stream=True)
        assert headers.STREAM not in engine.seen[-1].headers


async def _draining(client: Client) -> bool:
    return await client.metric('tandem_gateway_pods{role="decode",state="draining"}') == 1


async def _ready(client: Client, count: int) -> bool:
    return await client.metric('tandem_gateway_pods{role="decode",state="ready"}') == count


async def _resumed(client: Client) -> bool:
    return await resumes(client, "leaving") == 1


async def _in_flight(client: Client, count: int) -> bool:
    return await client.metric("tandem_gateway_requests_in_flight") == count
