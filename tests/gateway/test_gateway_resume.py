"""Streams that break off go on at another pod, from fake engines, over real sockets."""

from __future__ import annotations

import asyncio

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
    breaking,
    held_stream,
    join,
    resumes,
    spare,
)
from gateway.live_engine import LiveEngine
from tandem_contract import headers


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


async def test_a_stream_whose_pod_stalls_once_all_is_said_is_whole(keys: dict[str, str]) -> None:
    async with LiveEngine(hold_at_end=asyncio.Event()) as engine:
        async with gateway_before(engine, stall_timeout=0.5, **keys) as client:
            assert (await client.chat(stream=True)).body == stream_bytes(engine.words)
            assert await client.metric(LOST) == 0


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


async def test_a_stream_that_is_not_to_wait_goes_on_at_a_pod_that_is_ready(keys: dict[str, str]) -> None:
    """Who set --resume-timeout 0 to spare clients a wait had switched the going on off."""
    full, takes = spare("full", answer=FULL), spare("takes")
    async with held_stream(full, takes, pod=breaking(), resume_timeout=0.0, **keys) as stream:
        join(full, takes)
        await stream.ready(3)
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert takes.resumed_from == [HELD_AT]


async def test_pods_that_die_now_and_then_cost_a_stream_that_gets_on_nothing(keys: dict[str, str]) -> None:
    breaks = [3, 0, 2, 0, 2, 0]
    fleet = [LiveEngine(status(f"d{index}"), words=20, break_after=breaks) for index in range(2)]
    async with fleet[0], fleet[1], gateway_before(*fleet, **keys) as client:
        assert (await client.chat(stream=True)).body == stream_bytes(20)
        assert breaks == []


async def test_a_resumed_stream_may_use_a_prefill_pod(keys: dict[str, str]) -> None:
    """Its prompt and what it said so far are one long prompt."""
    taker, prefill = spare(), FakeEngine(status("p", role="prefill"))
    async with held_stream(taker, prefill, pod=breaking(), **keys) as stream:
        join(taker)
        await stream.ready(2)
        stream.pod.answer = FULL
        stream.pod.thawed.set()
        assert await stream.body() == stream_bytes(WORDS)
        assert headers.TICKET in taker.posts()[-1].headers
        assert taker.resumed_from == [HELD_AT]


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
        await eventually(lambda: stream.pod.posted(3))
        stream.asking.cancel()
        await eventually(lambda: stream.client.counts("tandem_gateway_requests_in_flight", 0))
        assert await stream.in_flight() == 0


async def test_max_resumes_zero_asks_for_no_live_streams(keys: dict[str, str]) -> None:
    async with LiveEngine() as engine, gateway_before(engine, max_resumes=0, **keys) as client:
        await client.chat(stream=True)
        assert headers.STREAM not in engine.seen[-1].headers


async def test_only_text_that_is_being_written_is_asked_for_as_a_live_stream(keys: dict[str, str]) -> None:
    async with LiveEngine() as engine, gateway_before(engine, **keys) as client:
        for path, live in (("/tokenize", False), ("/v1/completions", True)):
            await client.post(path, json={"model": "m", "prompt": "x", "stream": True})
            assert (headers.STREAM in engine.seen[-1].headers) is live
