"""Pods that come and go while requests are under way."""

from __future__ import annotations

import asyncio

import pytest
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine, status, stream_bytes
from gateway.given_endpoints import GivenEndpoints
from gateway.harness import CHAT, Client, gateway_before
from tandem_contract import headers
from tandem_gateway.endpoints import Update


class BrokenOnceEndpoints(GivenEndpoints):
    """Fails at first, then says what there is."""

    failed = False

    async def run(self, update: Update) -> None:
        if not self.failed:
            self.failed = True
            raise AttributeError("no such thing")
        await super().run(update)


async def _pods(client: Client, state: str, count: int) -> None:
    async def so() -> bool:
        return await client.metric(f'tandem_gateway_pods{{role="decode",state="{state}"}}') == count

    await eventually(so)


@pytest.mark.parametrize("goes", ["leaving", "removed"])
async def test_a_stream_outlives_its_pods_listing(goes: str) -> None:
    held = FakeEngine(hold_after_first=asyncio.Event())
    async with held, FakeEngine() as other:
        endpoints = GivenEndpoints(held)
        async with gateway_before(held, endpoints=endpoints) as client:
            body = {"model": "m", "stream": True, "messages": []}
            async with client.session.post(client.url + CHAT, json=body) as answer:
                first = await answer.content.readany()
                endpoints.set(other, leaving=(held,) if goes == "leaving" else ())
                await _pods(client, "ready", 1)
                for _ in range(3):
                    assert (await client.chat()).headers[headers.PODS] == f"decode={other.name}"
                assert held.hold_after_first is not None
                held.hold_after_first.set()
                assert first + await answer.read() == stream_bytes(held.words)
            endpoints.set(other)
            await _pods(client, "draining", 0)


async def test_a_request_that_waits_at_a_removed_pod_goes_elsewhere() -> None:
    async with FakeEngine(hold=asyncio.Event()) as held, FakeEngine(status("other")) as other:
        endpoints = GivenEndpoints(held)
        async with gateway_before(held, endpoints=endpoints) as client:
            asking = asyncio.create_task(client.chat())
            await held.arrived.wait()
            endpoints.set(held, other)
            await _pods(client, "ready", 2)
            endpoints.set(other)
            assert (await asking).headers[headers.PODS] == f"decode={other.name}"
            await asyncio.wait_for(held.cancelled.wait(), 5)


async def test_a_discovery_that_fails_is_loud_and_begins_again(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEngine() as engine, gateway_before(engine, endpoints=BrokenOnceEndpoints(engine)) as client:
        assert (await client.chat()).status == 200
    assert "following the endpoints failed" in caplog.text
    assert "AttributeError: no such thing" in caplog.text


@pytest.mark.parametrize("body", [b'{"name": "\xff\xfe"}', b'{"x": ' + b"[" * 100_000, b"\xff\x00", b"3"])
async def test_a_status_that_is_garbage_does_not_end_the_polling(body: bytes) -> None:
    """msgspec raises UnicodeDecodeError and RecursionError besides its own errors; one such body ended the poller."""
    async with FakeEngine() as engine, gateway_before(engine) as client:
        engine.status_body = body
        await _pods(client, "down", 1)
        engine.status_body = None
        await _pods(client, "ready", 1)
        assert (await client.chat()).status == 200


async def test_late_polls_end_no_answer_that_still_comes() -> None:
    """A pod whose event loop was busy for two polls lost every request it had; their answers were on the way."""
    async with FakeEngine(hold=asyncio.Event()) as engine, gateway_before(engine) as client:
        asking = asyncio.create_task(client.chat())
        await engine.arrived.wait()
        engine.hold_status = asyncio.Event()
        await _pods(client, "down", 1)
        assert engine.hold is not None
        engine.hold.set()
        answer = await asking
        assert (answer.status, answer.headers[headers.PODS]) == (200, f"decode={engine.name}")
