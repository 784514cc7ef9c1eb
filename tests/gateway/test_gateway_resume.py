"""Streams that break off go on at another pod, from fake engines, over real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway.eventually import eventually
from gateway.fake_engine import status, stream_bytes
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
    resumes,
    spare,
)
from gateway.live_engine import LiveEngine
from tandem_contract import headers

UNPROTECTED = "tandem_gateway_streams_unprotected_total"


async def test_a_broken_stream_goes_on_elsewhere_to_the_byte(keys: dict[str, str]) -> None:
    first, second = LiveEngine(words=40, break_after=[0, 7]), LiveEngine(words=40, break_after=[5])
    async with first, second, gateway_before(first, second, **keys) as client:
        for _ in range(3):
            answer = await client.chat(stream=True)
            assert (answer.status, answer.body) == (200, stream_bytes(40))
        assert await client.metric(resumes("broken")) == len(first.resumed_from) + len(second.resumed_from) >= 2


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


async def test_another_pod_is_told_how_long_the_client_has_waited(keys: dict[str, str]) -> None:
    """So that a request's time limit is one, wherever it goes on."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    taker = spare()
    async with held_stream(taker, pod=breaking(), **keys) as stream:
        join(taker)
        asked = loop.time()
        await stream.ready(2)
        at_least = loop.time() - asked
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        [told] = taker.told_elapsed
        assert at_least <= told <= loop.time() - before


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


async def test_a_stream_that_is_not_to_wait_goes_on_at_a_pod_that_is_ready(keys: dict[str, str]) -> None:
    """Who set --resume-timeout 0 to spare clients a wait had switched the going on off."""
    full, takes = spare("full", answer=FULL), spare("takes")
    async with held_stream(full, takes, pod=breaking(), resume_timeout=0.0, **keys) as stream:
        join(full, takes)
        await stream.ready(3)
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert takes.resumed_from == [HELD_AT]


async def test_a_stream_waits_no_longer_than_its_request_may_take(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), request_timeout=1.0, resume_timeout=60.0, **keys) as stream:
        await stream.pod.stop()
        await assert_no_pod(stream, HELD_AT)


async def test_a_stream_that_waits_for_a_pod_is_told_that_the_gateway_ends(keys: dict[str, str]) -> None:
    """No attempt runs then that could be cut off."""
    async with held_stream(pod=breaking(), **keys) as stream:
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        await eventually(lambda: posts(stream.pod, 3))
        await stream.client.gateway.drain(0.0)
        assert b"shutting_down" in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="shutdown"}}') == 1


async def assert_no_pod(stream: HeldStream, words: int) -> None:
    whole, _, error = (await stream.body()).partition(b'data: {"error"')
    assert stream_bytes(words).startswith(whole)
    assert json.loads(b'{"error"' + error)["error"]["code"] == "no_pod_available"
    assert await stream.client.metric(f'{LOST}{{reason="no_pod"}}') == 1


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


async def test_a_broken_stream_that_one_pod_refuses_goes_on_at_another(keys: dict[str, str]) -> None:
    """The first refusal ended it, whoever else there was."""
    refuses, takes = spare("refuses", answer=OTHER_ANSWER), spare("takes")
    async with held_stream(refuses, takes, pod=breaking(), **keys) as stream:
        stream.pod.answer = FULL
        join(refuses)
        await stream.ready(2)
        stream.pod.thawed.set()
        await asyncio.wait_for(refuses.arrived.wait(), 20)
        join(takes)
        assert await stream.body() == stream_bytes(WORDS)
        assert takes.resumed_from == [HELD_AT]
        assert len(refuses.posts()) == 1, "one that has refused a stream is not asked again"


async def test_a_broken_stream_that_every_pod_refuses_ends_soon(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), resume_timeout=60.0, **keys) as stream:
        stream.pod.answer = OTHER_ANSWER
        stream.pod.thawed.set()
        assert b'"code":"pod_failed"' in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="refused"}}') == 1


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
        await eventually(lambda: posts(long, 3))
        join(other)
        await stream.ready(2)
        assert (await stream.client.chat(stream=True)).body == stream_bytes(200)
        assert b'"code":"pod_failed"' in await stream.body()
        assert await stream.client.metric(f'{LOST}{{reason="no_records"}}') == 1


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
    taker = spare()
    async with held_stream(taker, stall_timeout=0.4, **keys) as stream:
        join(taker)
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("stalled") >= 1


async def test_a_pod_that_restarted_unseen_loses_its_streams_to_others(keys: dict[str, str]) -> None:
    taker = spare()
    async with held_stream(taker, **keys) as stream:
        join(taker)
        stream.pod.status = status(incarnation="2")
        assert await stream.body() == stream_bytes(WORDS)
        assert await stream.resumes("pod_down") >= 1


async def test_a_client_that_leaves_while_its_stream_waits_leaves_nothing(keys: dict[str, str]) -> None:
    async with held_stream(pod=breaking(), **keys) as stream:
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        await eventually(lambda: posts(stream.pod, 3))
        stream.asking.cancel()
        await eventually(lambda: stream.client.counts("tandem_gateway_requests_in_flight", 0))
        assert await stream.in_flight() == 0


async def posts(pod: LiveEngine, count: int) -> bool:
    return len(pod.posts()) >= count


async def test_max_resumes_zero_asks_for_no_live_streams(keys: dict[str, str]) -> None:
    async with LiveEngine() as engine, gateway_before(engine, max_resumes=0, **keys) as client:
        await client.chat(stream=True)
        assert headers.STREAM not in engine.seen[-1].headers
