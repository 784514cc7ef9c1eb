"""Writes the chart's dashboards: `cd charts && python -m dashboards`. A test compares what is committed with this."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards import rows
from dashboards.grafana import dashboard, variable
from dashboards.queries import SERVICE
from tandem_contract import metrics as m

FOLDER = Path(__file__).parents[1] / "tandem" / "dashboards"

DATASOURCE = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}
NAMESPACE = variable("namespace", "Namespace", f"label_values({m.GATEWAY_PODS.name}, namespace)")
ONE_SERVICE = variable(
    "service", "Service", f'label_values({m.GATEWAY_PODS.name}{{namespace=~"$namespace"}}, {SERVICE})'
)
OPERATOR_NAMESPACE = variable("namespace", "Namespace", f"label_values({m.RECONCILE_SECONDS.name}_count, namespace)")


def generated() -> dict[Path, str]:
    """Contents by path."""
    services = [rows.OVERVIEW, rows.TRAFFIC, rows.LATENCY, rows.ENGINES, rows.HANDOFF, rows.GATEWAY, rows.DOWNLOAD]
    made = {
        "services.json": dashboard(
            "tandem-services", "Tandem / Services", [DATASOURCE, NAMESPACE, ONE_SERVICE], services
        ),
        "operator.json": dashboard(
            "tandem-operator", "Tandem / Operator", [DATASOURCE, OPERATOR_NAMESPACE], [rows.OPERATOR]
        ),
    }
    return {FOLDER / name: json.dumps(board, indent=1, ensure_ascii=False) + "\n" for name, board in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
