"""Rows as Grafana's classic JSON model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dashboards.panels import Panel, Row

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def variable(name: str, label: str, query: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "includeAll": True, "multi": True,
        "allValue": ".*", "current": {"text": "All", "value": "$__all"}, **more,
    }  # fmt: skip


def grafana_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limits:
        steps += [{"color": c, "value": v} for c, v in zip(("orange", "red"), panel.limits, strict=True)]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 30 if panel.stacked else 5, "showPoints": "never"}
        defaults["custom"] = custom | ({"stacking": {"mode": "normal"}} if panel.stacked else {})
        options = {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list", "placement": "bottom"},
        }
    elif panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Spectral"}, "cellGap": 0}
    elif panel.kind == "stat":
        options = {"graphMode": "area", "colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    buckets = panel.kind == "heatmap"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend or "__auto",
             "datasource": SOURCE, **({"format": "heatmap"} if buckets else {})}
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }  # fmt: skip


def laid_out(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Panels from left to right, a new line where one does not fit."""
    made: list[dict[str, Any]] = []
    x = y = height = 0
    for row in rows:
        y, x = y + height, 0
        made.append({"id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                     "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})  # fmt: skip
        y, height = y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            made.append(grafana_panel(panel, len(made) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
    return made


def dashboard(uid: str, title: str, variables: list[dict[str, Any]], rows: list[Row]) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "tags": ["tandem"],
        "schemaVersion": 39,
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"title": "Tandem", "type": "dashboards", "tags": ["tandem"], "asDropdown": True, "keepTime": True}],
        "templating": {"list": variables},
        "panels": laid_out(rows),
    }
