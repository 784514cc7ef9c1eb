"""What the gateway asks another pod for, and when it does not: full, dead and unreachable pods."""

from __future__ import annotations

import contextlib
import json

import pytest
from aiohttp import web
from gateway.fake_engine import FakeEngine, status
from gateway.harness import gateway_before


async def test_a_full_pod_is_answered_by_the_next() -> None:
    full = FakeEngine(answer=web.json_response({"error": {"message": "full"}}, status=503))
    async with full, FakeEngine() as other, gateway_before(full, other, strategy="RoundRobin") as client:
        assert [(await client.chat()).status for _ in range(4)] == [200] * 4
        assert len(full.seen) == await client.metric('tandem_gateway_retries_total{reason="busy"}') >= 1


async def test_when_all_are_full_the_pods_own_503_comes_back_with_retry_after() -> None:
    full = web.json_response({"error": {"message": "full"}}, status=503)
    async with FakeEngine(answer=full) as one, FakeEngine(answer=full) as two, gateway_before(one, two) as client:
        answer = await client.chat()
        assert (answer.status, json.loads(answer.body)) == (503, {"error": {"message": "full"}})
        assert answer.headers["Retry-After"] == "1"
        assert len(one.seen) == len(two.seen) == 1


async def test_the_retry_budget_ends_retries() -> None:
    full = web.json_response({}, status=503)
    async with FakeEngine(answer=full) as one, FakeEngine(answer=full) as two, gateway_before(one, two) as client:
        for _ in range(60):
            await client.chat()
        assert 60 < len(one.seen) + len(two.seen) < 110


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pod_that_dies_before_the_first_byte_is_retried_elsewhere(stream: bool) -> None:
    async with FakeEngine(die_after=0) as dead, FakeEngine() as live:
        async with gateway_before(dead, live, strategy="RoundRobin") as client:
            answers = [await client.chat(stream=stream) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 200]
            assert len(dead.posts()) == await client.metric('tandem_gateway_retries_total{reason="broken"}') >= 1


def _engine_dead() -> web.Response:
    error = {"message": "The engine is gone.", "type": "server_error", "param": None, "code": "engine_dead"}
    return web.json_response({"error": error}, status=503)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", ["engine_dead", "broken", "one of each"])
async def test_a_request_that_kills_pods_reaches_no_more_than_two(ends: str, stream: bool) -> None:
    """Every 503 counted as busy, so one poison request took down as many pods as there were attempts."""
    fleet = [FakeEngine(status(f"d{index}")) for index in range(4)]
    for index, engine in enumerate(fleet):
        if ends == "engine_dead" or (ends == "one of each" and index % 2):
            engine.answer = _engine_dead()
        else:
            engine.die_after = 0
    async with contextlib.AsyncExitStack() as stack:
        for engine in fleet:
            await stack.enter_async_context(engine)
        client = await stack.enter_async_context(
            gateway_before(*fleet, strategy="RoundRobin", max_attempts=4, status_interval=60.0)
        )
        answer = await client.chat(stream=stream)
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"]) in {(503, "engine_dead"), (502, "pod_failed")}
        assert [len(engine.posts()) for engine in fleet if engine.posts()] == [1, 1]


async def test_a_pod_whose_engine_died_is_left_once_by_a_request_and_at_once_by_the_next() -> None:
    async with FakeEngine(answer=_engine_dead()) as dead, FakeEngine() as live:
        async with gateway_before(dead, live, strategy="RoundRobin", status_interval=60.0) as client:
            assert [(await client.chat()).status for _ in range(4)] == [200] * 4
            assert len(dead.posts()) == 1
            assert await client.metric('tandem_gateway_retries_total{reason="engine_dead"}') == 1


async def test_busy_pods_are_tried_up_to_max_attempts() -> None:
    full = web.json_response({"error": {"message": "full", "code": "engine_overloaded"}}, status=503)
    async with contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(FakeEngine(answer=full)) for _ in range(4)]
        client = await stack.enter_async_context(gateway_before(*fleet, max_attempts=4))
        assert (await client.chat()).headers["Retry-After"] == "1"
        assert [len(engine.posts()) for engine in fleet] == [1] * 4


async def test_an_unreachable_pod_is_left_at_once() -> None:
    async with FakeEngine() as gone, FakeEngine() as live:
        async with gateway_before(gone, live, strategy="RoundRobin", status_interval=60.0) as client:
            await gone.stop()
            assert [(await client.chat()).status for _ in range(3)] == [200] * 3
            assert await client.metric('tandem_gateway_retries_total{reason="connect"}') == 1
