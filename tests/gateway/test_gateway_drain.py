"""Streams of a pod that leaves go on at another one once it has agreed. Fake engines, real sockets."""

from __future__ import annotations

import asyncio

import pytest
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.given_endpoints import GivenEndpoints
from gateway.harness import CHAT, gateway_before
from gateway.held_stream import FULL, HELD_AT, LOST, OTHER_ANSWER, WORDS, breaking, held_stream, join, refusing, spare
from gateway.live_engine import LiveEngine

NOT_LEFT = "stream stays at its leaving pod"
"""In the log, of a stream that was cut for another pod and none took."""


async def test_a_draining_pod_hands_its_streams_over(keys: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """And is rid of them at once, not at their end."""
    caplog.set_level("INFO")
    taker = spare(freeze_after=HELD_AT)
    async with held_stream(taker, **keys) as stream:
        stream.drain()
        await stream.drained()
        await stream.pod.polled(3)
        assert NOT_LEFT not in caplog.text, "nobody can take over yet"
        join(taker)
        await asyncio.wait_for(stream.pod.cancelled.wait(), 20)
        assert not stream.asking.done()
        taker.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("leaving") == 1


async def test_a_stream_that_is_not_to_wait_leaves_its_draining_pod(keys: dict[str, str]) -> None:
    """--resume-timeout 0 speaks of pods that are lost; nobody was asked to take up streams of those that leave."""
    taker = spare()
    async with held_stream(taker, resume_timeout=0.0, **keys) as stream:
        stream.drain(taker)
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("leaving") == 1


async def test_a_pod_that_is_no_longer_ready_hands_its_streams_over(keys: dict[str, str]) -> None:
    taker = spare()
    async with held_stream(taker, **keys) as stream:
        join(taker)
        stream.pod.status = status(ready=False)
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("leaving") == 1


@pytest.mark.parametrize(
    ("code", "refusal"), [(409, "other_answer"), (400, "invalid_request"), (503, "engine_overloaded"), (503, "queue")]
)
async def test_a_stream_that_no_other_pod_takes_stays_at_its_draining_pod(
    keys: dict[str, str], caplog: pytest.LogCaptureFixture, code: int, refusal: str
) -> None:
    """Its pod was let go of first, and the stream was lost although the pod would have ended it."""
    caplog.set_level("INFO")
    other = spare(answer=refusing(code, refusal))
    if refusal == "queue":
        other.answer, other.hold = None, asyncio.Event()
    async with held_stream(other, resume_timeout=0.3, **keys) as stream:
        stream.drain(other)
        await asyncio.wait_for(other.arrived.wait(), 20)
        assert not stream.pod.cancelled.is_set()
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert other.resumed_from == []
        assert NOT_LEFT in caplog.text
        assert await stream.resumes("leaving") == 0
        assert await stream.client.metric(LOST) == 0
        assert await stream.in_flight() == 0


async def test_a_draining_pods_stream_is_offered_again(keys: dict[str, str]) -> None:
    """The other pod was full at first. It is not asked at every poll: each time the client waits."""
    full = spare(answer=FULL)
    async with held_stream(full, **keys) as stream:
        stream.drain(full)
        await asyncio.wait_for(full.arrived.wait(), 20)
        await stream.pod.polled(10)
        assert len(full.posts()) == 1
        full.answer = None
        assert await stream.body() == stream_bytes(WORDS)
        assert full.resumed_from == [HELD_AT]
        assert await stream.resumes("leaving") == 1
        await asyncio.wait_for(stream.pod.cancelled.wait(), 20)


async def test_a_draining_pods_stream_goes_past_a_pod_that_refuses_it(keys: dict[str, str]) -> None:
    refuses, takes = spare("refuses", answer=OTHER_ANSWER, hold=asyncio.Event()), spare("takes")
    async with held_stream(refuses, takes, **keys) as stream:
        stream.drain(refuses)
        await asyncio.wait_for(refuses.arrived.wait(), 20)
        join(takes)
        await stream.ready(2)
        assert refuses.hold is not None
        refuses.hold.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert takes.resumed_from == [HELD_AT]
        assert len(refuses.posts()) == 1, "one that has refused a stream is not asked again"


async def test_a_pod_that_dies_while_another_is_asked_loses_its_stream_to_it(keys: dict[str, str]) -> None:
    taker = spare(hold=asyncio.Event())
    async with held_stream(taker, pod=breaking(), **keys) as stream:
        stream.drain(taker)
        await asyncio.wait_for(taker.arrived.wait(), 20)
        stream.pod.thawed.set()
        assert taker.hold is not None
        taker.hold.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert taker.resumed_from == [HELD_AT]


async def test_a_client_that_leaves_while_another_pod_is_asked_frees_both(keys: dict[str, str]) -> None:
    """The answer of the leaving pod is kept open meanwhile, by nobody but the request."""
    asked = spare(hold=asyncio.Event())
    async with held_stream(asked, **keys) as stream:
        stream.drain(asked)
        await asyncio.wait_for(asked.arrived.wait(), 20)
        assert await stream.in_flight() == 2
        stream.asking.cancel()
        await asyncio.wait_for(asyncio.gather(stream.pod.cancelled.wait(), asked.cancelled.wait()), 20)
        await eventually(stream.nothing_in_flight)


async def test_a_gateway_that_ends_while_another_pod_is_asked_frees_both(keys: dict[str, str]) -> None:
    asked = spare(hold=asyncio.Event())
    async with held_stream(asked, **keys) as stream:
        stream.drain(asked)
        await asyncio.wait_for(asked.arrived.wait(), 20)
        await stream.client.gateway.drain(0.0)
        assert b"shutting_down" in await stream.body()
        await asyncio.wait_for(asyncio.gather(stream.pod.cancelled.wait(), asked.cancelled.wait()), 20)


async def test_a_request_without_an_answer_yet_stays_at_its_draining_pod(keys: dict[str, str]) -> None:
    """It was taken away from the pod that had it in its queue, and answered with a 502 as no other had room."""
    first, full = LiveEngine(words=WORDS, hold=asyncio.Event()), spare("full", answer=FULL)
    async with first, full, gateway_before(first, full, **keys) as client:
        asking = asyncio.create_task(client.chat(stream=True))
        await first.arrived.wait()
        join(full)
        first.status = status(draining=True, ready=False)
        await eventually(lambda: client.counts('tandem_gateway_pods{role="decode",state="draining"}', 1))
        assert first.hold is not None
        first.hold.set()
        assert (await asyncio.wait_for(asking, 20)).body == stream_bytes(WORDS)


async def test_a_removed_pods_stream_is_offered_again(keys: dict[str, str]) -> None:
    """It was asked for once, when its pod was removed: one that broke off later had waited for nothing."""
    taker = spare()
    pod = LiveEngine(words=WORDS, freeze_after=HELD_AT)
    endpoints = GivenEndpoints(pod, taker)
    async with held_stream(taker, pod=pod, endpoints=endpoints, **keys) as stream:
        endpoints.set(taker)
        await taker.polled(2)
        join(taker)
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("leaving") == 1


async def test_a_stream_that_stays_at_a_pod_which_stalls_goes_on_elsewhere(keys: dict[str, str]) -> None:
    full = spare(answer=FULL)
    async with held_stream(full, stall_timeout=0.5, **keys) as stream:
        stream.drain(full)
        await asyncio.wait_for(full.arrived.wait(), 20)
        full.answer = None
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("stalled") == 1


async def test_a_stream_that_stays_outlives_its_pods_listing(keys: dict[str, str]) -> None:
    pod, refuses = LiveEngine(words=WORDS, freeze_after=HELD_AT), spare(answer=OTHER_ANSWER)
    endpoints = GivenEndpoints(pod, refuses)
    async with held_stream(refuses, pod=pod, endpoints=endpoints, resume_timeout=0.5, **keys) as stream:
        stream.drain(refuses)
        await asyncio.wait_for(refuses.arrived.wait(), 20)
        await pod.polled(3)
        endpoints.set(refuses)
        await refuses.polled(3)
        pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.client.metric(LOST) == 0


async def test_a_pod_that_leaves_before_it_goes_on_with_a_stream_is_left_for_good(keys: dict[str, str]) -> None:
    """There is nothing of it to go back to, nor of the pod before it: one more failure is not the second."""
    leaves, takes = spare("leaves", hold=asyncio.Event()), spare("takes", answer=refusing(503, "engine_dead"))
    async with held_stream(leaves, takes, pod=breaking(), **keys) as stream:
        join(leaves)
        await stream.ready(2)
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        await asyncio.wait_for(leaves.arrived.wait(), 20)
        join(takes)
        leaves.status = status("leaves", draining=True, ready=False)
        await asyncio.wait_for(takes.arrived.wait(), 20)
        takes.answer = None
        assert await stream.body() == stream_bytes(WORDS)
        assert takes.resumed_from == [HELD_AT]


async def test_a_resumed_stream_outlives_its_pods_listing(keys: dict[str, str]) -> None:
    """It passed for unanswered to its end: the pod that had it now left, and it broke off where it would have ended."""
    taker = spare(freeze_after=HELD_AT)
    pod = LiveEngine(words=WORDS, freeze_after=HELD_AT)
    endpoints = GivenEndpoints(pod, taker)
    async with held_stream(taker, pod=pod, endpoints=endpoints, resume_timeout=1.0, **keys) as stream:
        stream.drain(taker)
        await stream.resumed("leaving", 1)
        endpoints.set()
        taker.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert taker.resumed_from == [HELD_AT]


async def test_a_gateway_that_ends_leaves_streams_where_they_are(keys: dict[str, str]) -> None:
    """Ctrl-C ends gateway and pods at once: a stream moved then found no pod left, and was lost half a minute later."""
    taker = spare()
    async with held_stream(taker, **keys) as stream:
        ending = asyncio.create_task(stream.client.gateway.drain(0.5))
        stream.drain(taker)
        await stream.drained()
        assert b"shutting_down" in await stream.body(), "its pod never went on, and the drain timeout came"
        assert await stream.client.metric(f'{LOST}{{reason="shutdown"}}') == 1
        assert taker.resumed_from == []
        await ending


async def test_an_answer_of_which_nothing_was_heard_yet_stays_at_its_draining_pod(keys: dict[str, str]) -> None:
    """Its headers are there, its first record is not; it ended in an error."""
    taker = spare()
    async with held_stream(taker, pod=LiveEngine(words=WORDS, freeze_after=0), **keys) as stream:
        stream.drain(taker)
        await stream.drained()
        await stream.pod.polled(3)
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert taker.posts() == []


async def test_a_stream_that_has_gone_on_often_enough_stays_at_its_draining_pod(
    keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    taker = spare(freeze_after=HELD_AT)
    async with held_stream(taker, pod=breaking(), max_resumes=1, **keys) as stream:
        stream.pod.answer = FULL
        join(taker)
        await stream.ready(2)
        stream.pod.thawed.set()
        await asyncio.wait_for(taker.frozen.wait(), 20)
        taker.status = status("spare", draining=True, ready=False)
        await stream.drained()
        await taker.polled(3)
        taker.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert NOT_LEFT not in caplog.text, "its client waited for nothing"


async def test_a_stream_without_records_stays_at_its_draining_pod(
    keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Such a pod has no ticket keys, or is older than live streams; moving its stream would end it."""
    caplog.set_level("INFO")
    plain, taker = FakeEngine(words=WORDS, hold_after_first=asyncio.Event()), spare()
    async with plain, taker, gateway_before(plain, taker, **keys) as client:
        body = {"model": "m", "stream": True, "messages": []}
        async with client.session.post(client.url + CHAT, json=body) as answer:
            first = await answer.content.readany()
            join(taker)
            plain.status = status(draining=True, ready=False)
            await eventually(lambda: client.counts('tandem_gateway_pods{role="decode",state="draining"}', 1))
            await plain.polled(3)
            assert plain.hold_after_first is not None
            plain.hold_after_first.set()
            assert first + await answer.content.read() == stream_bytes(WORDS)
        assert taker.seen == []
        assert NOT_LEFT not in caplog.text
