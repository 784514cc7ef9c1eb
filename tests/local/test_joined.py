from __future__ import annotations

import asyncio

from aiohttp import web
from tandem_runtime.local.joined import pods_joined, ready_pods


def exposition(prefill: int) -> str:
    return (
        "# HELP tandem_gateway_pods Pods known\n# TYPE tandem_gateway_pods gauge\n"
        'tandem_gateway_pods{role="decode",state="ready"} 3.0\n'
        'tandem_gateway_pods{role="prefill",state="not_ready"} 2.0\n'
        f'tandem_gateway_pods{{role="prefill",state="ready"}} {prefill}.0\n'
    )


def test_only_ready_pods_of_the_role_count() -> None:
    assert (ready_pods(exposition(1), "prefill"), ready_pods(exposition(1), "decode")) == (1, 3)
    assert ready_pods("", "prefill") == 0


async def test_the_first_question_waits_until_the_gateway_knows_the_prefill_pod() -> None:
    """Symptom: the demo's question was computed by the decode pod. Cause: the gateway had not polled the other one."""
    asked = 0

    async def metrics(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=exposition(1 if asked == 3 else 0))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with asyncio.timeout(5):
        await pods_joined(f"http://127.0.0.1:{port}/metrics", prefill=1)
    await runner.cleanup()
    assert asked == 3
