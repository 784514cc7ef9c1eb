"""What the fault tests share: decode pods behind fault proxies, tickets, waiting for a stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from processes.asking import ask
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.serving import EnginePod, Fleet
from tandem_contract import headers

PROXY_HOST = "127.0.0.2"
"""Where a decode pod behind a fault proxy is reached; the pod itself listens on 127.0.0.1."""
LONG = 7500
"""Tokens whose pages (5.8 MB) no socket buffers hold: a held transfer is not over yet."""
TINY_STEPS = {"max_num_batched_tokens": 64, "max_num_seqs": 8}
"""Prompts take many chunks, so that there is a middle to fail in."""


def ticketed(fleet: Fleet, prefill: EnginePod, request_id: str, **options: Any) -> dict[str, str]:
    return {headers.REQUEST_ID: request_id, headers.TICKET: fleet.ticket(prefill, request_id, **options)}


async def assert_right(answer: dict[str, Any], reference: EnginePod, body: dict[str, Any]) -> None:
    right = await ask(reference.url, body)
    assert answer["choices"][0]["text"] == right["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == right["usage"]["completion_tokens"]


class ProxiedDecode:
    """A decode pod whose control and KV data ports peers reach only through fault proxies."""

    def __init__(self, fleet: Fleet, **faults: Any) -> None:
        control, data = free_port(), free_port()
        self.pod: EnginePod = fleet.pod(
            "decode", handoff_port=control, kv_data_port=data, advertise_host=PROXY_HOST, **TINY_STEPS
        )
        self.data = FaultProxy((PROXY_HOST, data), ("127.0.0.1", data), **faults)
        self._control = FaultProxy((PROXY_HOST, control), ("127.0.0.1", control))
        self.pod.wait_ready()

    def close(self) -> None:
        self.data.close()
        self._control.close()
        self.pod.kill()


@contextmanager
def proxied_decode(fleet: Fleet, **faults: Any) -> Iterator[ProxiedDecode]:
    made = ProxiedDecode(fleet, **faults)
    try:
        yield made
    finally:
        made.close()


async def holding(proxy: FaultProxy) -> None:
    assert await asyncio.to_thread(proxy.holding.wait, 30), "nothing was transferred"


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "the stage was never reached"
