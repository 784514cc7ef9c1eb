"""PromQL over the contract's metrics.

Series carry what a PodMonitor adds: namespace, pod, and the service's labels with `_` for `.` and `/`. A label of ours
that is also a target's (`pod`) is renamed `exported_pod` by Prometheus.
"""

from __future__ import annotations

import re

from tandem_contract import labels
from tandem_contract import metrics as m
from tandem_contract.metrics import Metric

SERVICE, ROLE = (re.sub(r"\W", "_", label) for label in (labels.SERVICE, labels.ROLE))
OURS = f'namespace=~"$namespace", {SERVICE}=~"$service"'
DECODE, READY = f'{ROLE}="decode"', 'state="ready"'
WINDOW = "$__rate_interval"


def select(metric: Metric | str, *more: str, scope: str = OURS) -> str:
    name = metric if isinstance(metric, str) else metric.name
    return f"{name}{{{', '.join(part for part in (scope, *more) if part)}}}"


def rate(metric: Metric, *more: str, by: str = "", scope: str = OURS) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({select(metric, *more, scope=scope)}[{WINDOW}]))"


def total(metric: Metric, *more: str, by: str = "", scope: str = OURS) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({select(metric, *more, scope=scope)})"


def occurrences(metric: Metric, scope: str = OURS) -> str:
    return f"sum (rate({select(f'{metric.name}_count', scope=scope)}[{WINDOW}]))"


def spread(metric: Metric) -> str:
    """Observations by bucket, for heatmaps."""
    return f"sum by (le) (rate({select(f'{metric.name}_bucket')}[{WINDOW}]))"


def quantile(q: float, metric: Metric, by: str = "", scope: str = OURS) -> str:
    buckets = select(f"{metric.name}_bucket", scope=scope)
    grouped = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({grouped}) (rate({buckets}[{WINDOW}])))"


def quantiles(metric: Metric, scope: str = OURS) -> dict[str, str]:
    return {f"p{round(q * 100)}": quantile(q, metric, scope=scope) for q in (0.5, 0.9, 0.99)}


def share(part: str, whole: str) -> str:
    """0 where nothing happened, or never did (no series of that kind exists yet), instead of no value."""
    return f"({part} or {whole} * 0) / clamp_min({whole}, 1e-9)"


def known_pods(*more: str, by: str = "role") -> str:
    """All gateways of a service count the same pods."""
    return f"sum by ({by}) (max by (namespace, {SERVICE}, role, state) ({select(m.GATEWAY_PODS, *more)}))"
