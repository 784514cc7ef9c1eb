"""Whether the gateway knows that the pods are ready: it polls them, and so learns it a little later than they do."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from tandem_contract import metrics as names

POLL_S = 0.05
PATIENCE_S = 10.0


async def pods_joined(metrics_url: str, *, prefill: int) -> None:
    """Returns when the gateway sees `prefill` ready prefill pods, or after `PATIENCE_S`: it serves without them too."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < deadline:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(metrics_url) as answer:
                    if ready_pods(await answer.text(), "prefill") >= prefill:
                        return
            await asyncio.sleep(POLL_S)


def ready_pods(exposition: str, role: str) -> int:
    """Of a gateway's metrics."""
    wanted = {"role": role, "state": "ready"}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == names.GATEWAY_PODS.name and sample.labels == wanted:
                return int(sample.value)
    return 0
