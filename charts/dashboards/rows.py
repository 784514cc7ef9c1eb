"""The dashboards' rows, as one looks for trouble: what users feel, then engines, handoff, gateway, download."""

from __future__ import annotations

from dashboards.panels import Panel, Row
from dashboards.queries import (
    DECODE,
    READY,
    ROLE,
    known_pods,
    occurrences,
    quantile,
    quantiles,
    rate,
    select,
    share,
    spread,
    total,
)
from tandem_contract import metrics as m

BY_ROLE = f"{{{{{ROLE}}}}}"
OPERATORS = 'namespace=~"$namespace"'

OVERVIEW = Row(
    "Now",
    [
        Panel("Ready prefill pods", "As the gateways see them.", {"": known_pods('role="prefill"', READY)},
              kind="stat", width=3, height=4),
        Panel("Ready decode pods", "None: nobody is answered.", {"": known_pods('role="decode"', READY)},
              kind="stat", width=3, height=4),
        Panel("Requests", "Answers of the gateways.", {"": rate(m.GATEWAY_REQUESTS)}, "reqps", "stat", 3, 4),
        Panel("Output", "Tokens sampled.", {"": rate(m.GENERATION_TOKENS)}, "short", "stat", 3, 4),
        Panel("TTFT p99", "Arrival at the decode pod to the first token.", {"": quantile(0.99, m.TTFT)},
              "s", "stat", 3, 4, limits=(2, 10)),
        Panel("TPOT p99", "Mean time per token of a request, the first left out.", {"": quantile(0.99, m.TPOT)},
              "s", "stat", 3, 4, limits=(0.05, 0.1)),
        Panel("Failed answers", "Share of 5xx.",
              {"": share(rate(m.GATEWAY_REQUESTS, 'code=~"5.."'), rate(m.GATEWAY_REQUESTS))},
              "percentunit", "stat", 3, 4, limits=(0.01, 0.05)),
        Panel("Waiting", "Queued for admission at decode pods. Lasting: add decode pods.",
              {"": total(m.REQUESTS_WAITING, DECODE)}, kind="stat", width=3, height=4,
              limits=(1, 50)),
    ],
)  # fmt: skip

TRAFFIC = Row(
    "Traffic",
    [
        Panel("Answers by status", "At the gateways; 429 and 503 are refused for want of room.",
              {"{{code}}": rate(m.GATEWAY_REQUESTS, by="code")}, "reqps", stacked=True),
        Panel("Tokens", "Prompt tokens admitted and tokens sampled, at decode pods.", {
            "prompt": rate(m.PROMPT_TOKENS, DECODE), "output": rate(m.GENERATION_TOKENS)}, "short"),
        Panel("Requests at once", "In flight at the gateways; running and waiting at decode pods.", {
            "in flight": total(m.GATEWAY_IN_FLIGHT),
            "running": total(m.REQUESTS_RUNNING, DECODE),
            "waiting": total(m.REQUESTS_WAITING, DECODE)}),
        Panel("How requests ended", "At decode pods: stop and length are good, rejected is a full queue.",
              {"{{outcome}}": rate(m.REQUESTS, by="outcome")}, "reqps", stacked=True),
        Panel("Pods by state", "As the gateways see them.", {"{{role}} {{state}}": known_pods(by="role, state")}),
        Panel("Output per decode pod", "Uneven: look at the picks below.",
              {"{{pod}}": rate(m.GENERATION_TOKENS, by="pod")}),
    ],
)  # fmt: skip

LATENCY = Row(
    "Latency",
    [
        Panel("Time to first token", "With queue, prefill and handoff. High: see Queue, Handoff.", quantiles(m.TTFT),
              "s"),
        Panel("Time per output token", "High: decode batches too large, or prompts computed on decode pods.",
              quantiles(m.TPOT), "s"),
        Panel("Inter-token latency", "Single gaps; p99 far above p50 is stutter.", quantiles(m.ITL), "s"),
        Panel("Queue", "Arrival to admission. High: too few decode pods, or too little KV memory.",
              quantiles(m.QUEUE_TIME), "s"),
        Panel("Whole request", "Arrival to last token, at decode pods.", quantiles(m.E2E), "s"),
        Panel("At the gateway: first byte", "What clients see, retries included.", quantiles(m.GATEWAY_TTFB), "s"),
        Panel("Inter-token latency, all gaps", "", {"{{le}}": spread(m.ITL)},
              "s", "heatmap", 12, 8),
        Panel("Time to first token, all requests", "",
              {"{{le}}": spread(m.TTFT)}, "s", "heatmap", 12, 8),
    ],
)  # fmt: skip

ENGINES = Row(
    "Engines",
    [
        Panel("KV pages in use", "Near 1: requests wait or are preempted. More pods, or a smaller maxModelLen.",
              {"{{pod}}": select(m.KV_USAGE)}, "percentunit", most=1),
        Panel("Prefix cache hits", "Share of prompt tokens that need not be computed.", {
            BY_ROLE: share(rate(m.PREFIX_HITS, by=ROLE), rate(m.PREFIX_QUERIES, by=ROLE))}, "percentunit", most=1),
        Panel("Preemptions", "Requests computed again for want of pages. Any that last cost throughput.",
              {"{{pod}}": rate(m.PREEMPTIONS, by="pod")}, "ops"),
        Panel("Guesses accepted", "Speculative decoding: share of guessed tokens that were right. Low: turn it off.",
              {"accepted": share(rate(m.ACCEPTED_TOKENS), rate(m.DRAFT_TOKENS))}, "percentunit", most=1),
        Panel("Tokens per step with guesses", "Of one sequence; 1 is what a step without guesses gives.",
              {"mean": f"1 + {share(rate(m.ACCEPTED_TOKENS), rate(m.DRAFTS))}"}),
        Panel("Running per pod", "", {"{{pod}}": select(m.REQUESTS_RUNNING)}),
        Panel("Waiting per pod", "At prefill pods: prompts that wait to be computed. Lasting: add prefill pods.",
              {"{{pod}}": select(m.REQUESTS_WAITING)}),
        Panel("Step time p99", "One engine step.",
              {BY_ROLE: quantile(0.99, m.STEP_TIME, ROLE)}, "s"),
        Panel("Device idle between steps p99", "The host is too slow where this is near the step time.",
              {BY_ROLE: quantile(0.99, m.STEP_GAP, ROLE)}, "s"),
        Panel("Model load", "Of pods that run.", {"{{pod}}": select(m.MODEL_LOAD)}, "s"),
        Panel("Versions", "More than one: a rollout.",
              {"{{role}} {{version}}": total(m.INFO, by="role, version")}),
    ],
)  # fmt: skip

HANDOFF = Row(
    "Handoff",
    [
        Panel("Handoff time", "From asking a prefill pod to the last verified page.", quantiles(m.HANDOFF_SECONDS),
              "s"),
        Panel("KV moved", "Bytes per second on each side.", {"{{side}}": rate(m.HANDOFF_BYTES, by="side")}, "Bps"),
        Panel("Bytes per handoff", "", {"mean": share(rate(m.HANDOFF_BYTES, 'side="received"'),
              rate(m.HANDOFFS, 'side="received", outcome="ok"'))}, "bytes"),
        Panel("Handoffs", "By side and outcome.", {"{{side}} {{outcome}}": rate(m.HANDOFFS, by="side, outcome")},
              "ops"),
        Panel("Fallbacks", "Prompts that decode pods computed themselves after a failed handoff.",
              {"{{reason}}": rate(m.HANDOFF_FALLBACKS, by="reason")}, "ops", stacked=True),
        Panel("Refused tickets", "By reason; the prompt is computed locally. expired: clocks that differ.",
              {"{{reason}}": rate(m.TICKETS_REFUSED, by="reason")}, "ops", stacked=True),
        Panel("Lost decode pods", "Jobs whose decode pod fell silent, and pages that wait for late writes.", {
            "leases expired": rate(m.HANDOFF_EXPIRED),
            "pages quarantined": total(m.HANDOFF_QUARANTINED)}),
    ],
)  # fmt: skip

GATEWAY = Row(
    "Gateway",
    [
        Panel("Picks", "By pod and role.",
              {"{{role}} {{exported_pod}}": rate(m.GATEWAY_PICKS, by="role, exported_pod")}, "reqps"),
        Panel("Retries", "Attempts after the first, by the first one's failure.",
              {"{{reason}}": rate(m.GATEWAY_RETRIES, by="reason")}, "ops", stacked=True),
        Panel("Streams that lost their pod", "Resumed at another decode pod without the client noticing; or lost.", {
            "resumed: {{cause}}": rate(m.GATEWAY_STREAM_RESUMES, by="cause"),
            "lost: {{reason}}": rate(m.GATEWAY_STREAMS_LOST, by="reason")}, "ops"),
        Panel("Streams without a net", "Records given up, so that the stream ends with its pod. memory: raise "
              "--max-journal-bytes.",
              {"{{reason}}": rate(m.GATEWAY_STREAMS_UNPROTECTED, by="reason")}, "ops", stacked=True),
        Panel("Records of live streams", "Per gateway.", {"{{pod}}": select(m.GATEWAY_JOURNAL_BYTES)}, "bytes"),
        Panel("Prefix affinity", "Share of prompt blocks that the picked pod had.",
              {"found": share(rate(m.GATEWAY_PREFIX_BLOCKS, 'found="true"'), rate(m.GATEWAY_PREFIX_BLOCKS))},
              "percentunit", most=1),
        Panel("In flight per gateway", "", {"{{pod}}": select(m.GATEWAY_IN_FLIGHT)}),
        Panel("Whole answer", "Request to last byte.", quantiles(m.GATEWAY_SECONDS), "s"),
        Panel("Requests by route", "", {"{{route}}": rate(m.GATEWAY_REQUESTS, by="route")}, "reqps"),
    ],
)  # fmt: skip

DOWNLOAD = Row(
    "Model download",
    [
        Panel("Download", "While a pod fetches; 0 while it waits for another that fills the same cache.",
              {"{{pod}}": rate(m.FETCH_BYTES, by="pod")}, "Bps"),
        Panel("Duration", "Of the last fetch.", {"{{pod}}": select(m.FETCH_SECONDS)}, "s"),
        Panel("Retries", "By reason.", {"{{pod}} {{reason}}": rate(m.FETCH_RETRIES, by="pod, reason")}, "ops"),
    ],
)  # fmt: skip

OPERATOR = Row(
    "Operator",
    [
        Panel("Services", "By their Ready condition.",
              {"Ready {{ready}}": total(m.SERVICES, by="ready", scope=OPERATORS)}, stacked=True),
        Panel("Reconcile time", "Reading, planning, writing and reporting one service. Long waits: raise --workers.",
              {**quantiles(m.RECONCILE_SECONDS, OPERATORS),
               "wait for a worker, p99": quantile(0.99, m.RECONCILE_WAIT, scope=OPERATORS)}, "s"),
        Panel("Reconciles", "Errors are tried again; lasting ones name a reason in the operator's log.", {
            "all": occurrences(m.RECONCILE_SECONDS, OPERATORS),
            "failed: {{reason}}": rate(m.RECONCILE_ERRORS, by="reason", scope=OPERATORS)}, "ops"),
        Panel("Writes to the API server", "None while nothing changes: lasting writes are a fight with another writer.",
              {"{{verb}} {{kind}}": rate(m.API_WRITES, by="kind, verb", scope=OPERATORS)},
              "ops", width=12, stacked=True),
        Panel("Watches that fail", "Forbidden: the operator lost its rights; it decides nothing until it has them.",
              {"{{kind}}: {{reason}}": rate(m.WATCH_FAILURES, by="kind, reason", scope=OPERATORS)},
              "ops", width=12, stacked=True),
    ],
)  # fmt: skip
