"""Broken streams that end early: nobody can go on with them, they have killed pods, or their records are gone."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.harness import gateway_before
from gateway.held_stream import (
    FULL,
    HELD_AT,
    LOST,
    OTHER_ANSWER,
    WORDS,
    HeldStream,
    breaking,
    held_stream,
    join,
    refusing,
    spare,
)
from gateway.live_engine import LiveEngine

UNPROTECTED = "tandem_gateway_streams_unprotected_total"


async def test_without_a_pod_a_stream_ends_with_an_error_in_bounded_time(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), resume_timeout=0.5, **keys) as stream:
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        await assert_no_pod(stream, WORDS)
        assert len(stream.pod.posts()) > 2, "it was asked all the time"


async def test_a_stream_that_is_not_to_wait_ends_at_once_without_another_pod(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), resume_timeout=0.0, **keys) as stream:
        stream.pod.thawed.set()
        await assert_no_pod(stream, HELD_AT)
        assert len(stream.pod.posts()) == 1


async def test_a_stream_waits_no_longer_than_its_request_may_take(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), request_timeout=1.0, resume_timeout=60.0, **keys) as stream:
        await stream.pod.stop()
        await assert_no_pod(stream, HELD_AT)


async def test_a_stream_that_waits_for_a_pod_is_told_that_the_gateway_ends(keys: dict[str, str]) -> None:
    """No attempt runs then that could be cut off."""
    async with held_stream(pod=breaking(), **keys) as stream:
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        await eventually(lambda: stream.pod.posted(3))
        await stream.client.gateway.drain(0.0)
        assert b"shutting_down" in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="shutdown"}}') == 1


async def test_a_broken_stream_of_a_pod_without_records_ends_at_once(keys: dict[str, str]) -> None:
    plain = FakeEngine(words=WORDS, die_after=HELD_AT)
    async with plain, gateway_before(plain, resume_timeout=60.0, **keys) as client:
        answer = await asyncio.wait_for(client.chat(stream=True), 20)
        assert b'"code":"pod_failed"' in answer.body
        assert await client.metric(f'{LOST}{{reason="no_records"}}') == 1


async def test_a_broken_stream_that_every_pod_refuses_ends_soon(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), resume_timeout=60.0, **keys) as stream:
        stream.pod.answer = OTHER_ANSWER
        stream.pod.thawed.set()
        assert b'"code":"pod_failed"' in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="refused"}}') == 1


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


async def test_pods_that_die_of_a_resumed_stream_before_it_begins_count_too(keys: dict[str, str]) -> None:
    fleet = [spare(name, answer=refusing(503, "engine_dead")) for name in ("a", "b", "c")]
    async with held_stream(*fleet, pod=breaking(), status_interval=0.2, **keys) as stream:
        join(*fleet)
        await stream.ready(4)
        stream.pod.thawed.set()
        assert b'"code":"pod_failed"' in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="deaths"}}') == 1
        assert sum(len(pod.posts()) for pod in fleet) == 2


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


async def test_a_stream_that_loses_its_net_while_it_waits_for_a_pod_ends(keys: dict[str, str]) -> None:
    long, other = LiveEngine(words=200, freeze_after=120, break_thawed=True), spare(continuation="other")
    other.words = 200
    async with held_stream(other, pod=long, max_journal_bytes=400, **keys) as stream:
        long.answer = FULL
        long.thawed.set()
        await eventually(lambda: long.posted(3))
        join(other)
        await stream.ready(2)
        assert (await stream.client.chat(stream=True)).body == stream_bytes(200)
        assert b'"code":"pod_failed"' in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="no_records"}}') == 1


async def assert_no_pod(stream: HeldStream, words: int) -> None:
    whole, _, error = (await stream.body()).partition(b'data: {"error"')
    assert stream_bytes(words).startswith(whole)
    assert json.loads(b'{"error"' + error)["error"]["code"] == "no_pod_available"
    assert await stream.client.metric(f'{LOST}{{reason="no_pod"}}') == 1
