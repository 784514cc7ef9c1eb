"""A gateway in the test's own loop, on real sockets, in front of fake engines."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from gateway.eventually import eventually
from gateway.fake_engine import FakeEngine
from tandem_contract.flags import GatewayFlags
from tandem_gateway.endpoints import StaticEndpoints
from tandem_gateway.main import Gateway, serving
from tandem_http.body import PACE, Pace
from tandem_tracing.spans import OFF, Tracing

CHAT = "/v1/chat/completions"


@dataclass
class Client:
    session: aiohttp.ClientSession
    gateway: Gateway
    url: str
    metrics_url: str

    async def chat(self, text: str = "hi", *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        return await self.post(CHAT, json=body, headers=headers)

    async def post(self, path: str, **options: Any) -> Answer:
        async with self.session.post(self.url + path, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **options: Any) -> Answer:
        async with self.session.get(self.url + path, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def metric(self, sample: str) -> float:
        """The value of one line of /metrics, such as `tandem_gateway_retries_total{reason="busy"}`; 0 if absent."""
        async with self.session.get(self.metrics_url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " ")), 0.0)

    async def counts(self, sample: str, value: float) -> bool:
        return await self.metric(sample) == value


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes


@contextlib.asynccontextmanager
async def gateway_before(
    *engines: FakeEngine,
    wait_ready: bool = True,
    endpoints: Any = None,
    pace: Pace = PACE,
    tracing: Tracing = OFF,
    **changes: Any,
) -> AsyncIterator[Client]:
    decode = tuple(engine.url for engine in engines if engine.status.role != "prefill")
    prefill = tuple(engine.url for engine in engines if engine.status.role == "prefill")
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "status_interval": 0.05} | changes
    flags = GatewayFlags(decode=decode or ("http://127.0.0.1:9",), prefill=prefill, **options)
    flags.check()
    async with (
        serving(flags, endpoints or StaticEndpoints(decode, prefill), pace=pace, tracing=tracing) as gateway,
        aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
    ):
        client = Client(
            session, gateway, f"http://127.0.0.1:{gateway.api_port}", f"http://127.0.0.1:{gateway.metrics_port}"
        )
        if wait_ready:
            for role in ("prefill", "decode", "both"):
                count = sum(engine.status.role == role and engine.status.ready for engine in engines)
                sample = f'tandem_gateway_pods{{role="{role}",state="ready"}}'
                await eventually(lambda sample=sample, count=count: client.counts(sample, count))  # type: ignore[misc]
        yield client
