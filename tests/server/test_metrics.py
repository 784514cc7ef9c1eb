from __future__ import annotations

import aiohttp
import openai
from prometheus_client.parser import text_string_to_metric_families
from support.api_server import Server
from support.scripted_engine import TRACE
from tandem_contract import metrics as contract
from tandem_runtime.core.errors import OverloadedError
from tandem_runtime.engine.messages import EngineStatus
from tandem_runtime.server.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_metric_of_an_engine_pod_is_exported() -> None:
    exported = {family.name for family in Metrics().registry.collect()}
    others = ("tandem_gateway_", "tandem_fetch_", "tandem_operator_")
    wanted = {metric.name.removesuffix("_total") for metric in contract.ALL if not metric.name.startswith(others)}
    assert exported == wanted


def test_statuses_add_up() -> None:
    metrics = Metrics()
    metrics.observe(
        EngineStatus(
            running=3,
            kv_pages_total=8,
            kv_pages_used=2,
            generation_tokens=10,
            handoffs={"decode/ok": 1},
            handoff_bytes={"received": 100},
            handoff_fallbacks={"timeout": 1},
            step_seconds=[0.01, 0.02],
        )
    )
    metrics.observe(
        EngineStatus(running=1, kv_pages_total=8, generation_tokens=25, handoffs={"decode/ok": 3, "decode/failed": 1})
    )
    assert value(metrics, "tandem_requests_running") == 1
    assert value(metrics, "tandem_kv_usage_ratio") == 0
    assert value(metrics, "tandem_generation_tokens_total") == 25
    assert value(metrics, "tandem_handoffs_total", side="decode", outcome="ok") == 3
    assert value(metrics, "tandem_handoffs_total", side="decode", outcome="failed") == 1
    assert value(metrics, "tandem_handoff_bytes_total", side="received") == 100
    assert value(metrics, "tandem_handoff_fallbacks_total", reason="timeout") == 1
    assert value(metrics, "tandem_step_seconds_count") == 2


async def test_requests_are_timed(server: Server, client: openai.AsyncOpenAI) -> None:
    await client.completions.create(model="tiny", prompt="a", max_tokens=5)
    metrics = server.pod.metrics
    assert value(metrics, "tandem_requests_total", outcome="length") == 1
    assert value(metrics, "tandem_time_to_first_token_seconds_count") == 1
    assert value(metrics, "tandem_inter_token_latency_seconds_count") == 4
    assert value(metrics, "tandem_time_per_output_token_seconds_count") == 1
    assert value(metrics, "tandem_request_seconds_count") == 1
    assert value(metrics, "tandem_queue_seconds_sum") == TRACE.queue_seconds
    assert value(metrics, "tandem_handoff_seconds_sum") == TRACE.handoff_seconds


async def test_outcomes(server: Server, client: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    metrics = server.pod.metrics
    body = {"model": "tiny", "prompt": "a"}
    server.engine.refuse = OverloadedError("full")
    async with http.post("/v1/completions", json=body):
        pass
    server.engine.refuse, server.engine.break_after = None, 2
    async with http.post("/v1/completions", json=body):
        pass
    server.engine.break_after = None
    await client.completions.create(model="tiny", prompt="a", stop="ell")
    for outcome in ("rejected", "error", "stop"):
        assert value(metrics, "tandem_requests_total", outcome=outcome) == 1, outcome
    assert value(metrics, "tandem_request_seconds_count") == 1


async def test_metrics_port(server: Server) -> None:
    async with aiohttp.ClientSession(server.metrics_url) as session:
        async with session.get("/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
            assert {"tandem_time_to_first_token_seconds", "tandem_kv_pages"} <= {family.name for family in families}
        for path in ("/livez", "/readyz"):
            async with session.get(path) as response:
                assert response.status == 200
        async with session.post("/v1/completions") as response:
            assert response.status == 404
