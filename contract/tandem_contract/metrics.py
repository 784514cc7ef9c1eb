"""Every metric Tandem exports. Dashboards and alerts may use only these names (checked by a test).

Units are in the names; counters end in `_total`. `LABELS` lists a metric's label names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS_S = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1,
    1.5,
    2,
    3,
    5,
    8,
    13,
    20,
    30,
    60,
    120,
    300,
)
"""TTFT, queue and end-to-end time."""
TOKEN_BUCKETS_S = (
    0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1,
)  # fmt: skip
"""TPOT and ITL; dense around the 20..50 ms where SLOs lie."""
STEP_BUCKETS_S = (
    2e-5,
    5e-5,
    1e-4,
    1.5e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2e-3,
    5e-3,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"tandem_{name}_total", "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"tandem_{name}", "gauge", help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(f"tandem_{name}", "histogram", help, labels, buckets)


# Engine pods
INFO = _gauge("info", "Always 1; what this pod is", "model", "role", "version")
REQUESTS_RUNNING = _gauge("requests_running", "Sequences that hold KV pages")
REQUESTS_WAITING = _gauge("requests_waiting", "Sequences queued for admission")
REQUESTS = _counter("requests", "Ended requests", "outcome")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of admitted requests")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens sampled")
TTFT = _histogram("time_to_first_token_seconds", "Arrival to first token", LATENCY_BUCKETS_S)
TPOT = _histogram("time_per_output_token_seconds", "Mean over a request, first token left out", TOKEN_BUCKETS_S)
ITL = _histogram("inter_token_latency_seconds", "Between two tokens of one request", TOKEN_BUCKETS_S)
E2E = _histogram("request_seconds", "Arrival to last token", LATENCY_BUCKETS_S)
QUEUE_TIME = _histogram("queue_seconds", "Arrival to admission", LATENCY_BUCKETS_S)
STEP_TIME = _histogram("step_seconds", "One engine step", STEP_BUCKETS_S)
STEP_GAP = _histogram("step_gap_seconds", "Device idle time between two steps", STEP_BUCKETS_S)
KV_USAGE = _gauge("kv_usage_ratio", "Share of KV pages held by live sequences")
KV_PAGES = _gauge("kv_pages", "KV pages in all")
PREFIX_QUERIES = _counter("prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache")
PREFIX_HITS = _counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache")
PREEMPTIONS = _counter("preemptions", "Sequences preempted for want of pages")
DRAFTS = _counter("spec_decode_drafts", "Steps of a sequence that verified guessed tokens")
DRAFT_TOKENS = _counter("spec_decode_draft_tokens", "Tokens guessed by speculative decoding")
ACCEPTED_TOKENS = _counter("spec_decode_accepted_tokens", "Guessed tokens that were what the sampler chose")
MODEL_LOAD = _gauge("model_load_seconds", "Time the model took to load")

# Handoff
HANDOFFS = _counter("handoffs", "Handoffs by side and outcome", "side", "outcome")
HANDOFF_BYTES = _counter("handoff_bytes", "KV bytes moved", "side")
HANDOFF_PAGES = _counter("handoff_pages", "KV pages moved", "side")
HANDOFF_SECONDS = _histogram("handoff_seconds", "From asking P to the last verified page", LATENCY_BUCKETS_S)
HANDOFF_FALLBACKS = _counter("handoff_fallbacks", "Prompts computed locally after a failed handoff", "reason")
TICKETS_REFUSED = _counter("tickets_refused", "Tickets that a decode pod did not honour", "reason")
HANDOFF_EXPIRED = _counter("handoff_leases_expired", "Jobs whose decode pod fell silent")
HANDOFF_QUARANTINED = _gauge("handoff_pages_quarantined", "Pages waiting for late writes to quiesce")

# Gateway
GATEWAY_REQUESTS = _counter("gateway_requests", "Answers by HTTP status", "route", "code")
GATEWAY_IN_FLIGHT = _gauge("gateway_requests_in_flight", "Requests in flight")
GATEWAY_RETRIES = _counter("gateway_retries", "Attempts after the first", "reason")
GATEWAY_STREAM_RESUMES = _counter("gateway_stream_resumes", "Streams that went on at another decode pod", "cause")
GATEWAY_STREAMS_LOST = _counter(
    "gateway_streams_lost", "Streams that had begun and ended with an error event", "reason"
)
GATEWAY_STREAMS_UNPROTECTED = _counter(
    "gateway_streams_unprotected", "Streams that end with their pod, as their records were given up", "reason"
)
GATEWAY_JOURNAL_BYTES = _gauge("gateway_journal_bytes", "Records of live streams")
GATEWAY_PICKS = _counter("gateway_picks", "Pods picked", "pod", "role")
GATEWAY_TTFB = _histogram("gateway_time_to_first_byte_seconds", "Request to first body byte", LATENCY_BUCKETS_S)
GATEWAY_SECONDS = _histogram("gateway_request_seconds", "Request to last body byte", LATENCY_BUCKETS_S)
GATEWAY_PODS = _gauge("gateway_pods", "Pods known", "role", "state")
GATEWAY_PREFIX_BLOCKS = _counter("gateway_prefix_blocks", "Prompt blocks by whether the picked pod had them", "found")

# Fetch
FETCH_BYTES = _counter("fetch_bytes", "Bytes downloaded", "scheme")
FETCH_SECONDS = _gauge("fetch_seconds", "Duration of the last fetch")
FETCH_RETRIES = _counter("fetch_retries", "Retried requests", "reason")

# Operator
RECONCILE_WAIT = _histogram("operator_queue_seconds", "A service's wait for a worker", LATENCY_BUCKETS_S)
RECONCILE_SECONDS = _histogram("operator_reconcile_seconds", "One reconcile", LATENCY_BUCKETS_S)
RECONCILE_ERRORS = _counter("operator_reconcile_errors", "Failed reconciles", "reason")
API_WRITES = _counter("operator_api_writes", "Writes to the API server", "kind", "verb")
WATCH_FAILURES = _counter("operator_watch_failures", "Lists and watches that failed", "kind", "reason")
SERVICES = _gauge("operator_inference_services", "InferenceServices by Ready condition", "ready")

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
