"""Findings as files for programs: CSV with a row a level, JSON with a record for every request."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from tandem_runtime.bench.serve.metrics import RequestRecord
from tandem_runtime.bench.serve.options import Options
from tandem_runtime.bench.serve.results import Edge, Findings, LevelResult, ratios


def write_csv(findings: Findings, path: Path) -> None:
    """Times in milliseconds."""
    rows = [level_row(level) for level in findings.levels]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def write_json(findings: Findings, options: Options, path: Path) -> None:
    """Times in seconds; figures that do not exist (TPOT of one token) are null."""
    document = {
        "seed": findings.seed,
        "options": {
            "targets": dict(options.targets),
            "endpoint": options.endpoint,
            "ignore_eos": options.ignore_eos,
            "temperature": options.temperature,
            "extra_body": options.extra_body,
            "shared_prefix_len": options.shared_prefix_len,
            "gpus": options.gpus,
            "slo": str(options.slo),
        },
        "levels": [_level(level) for level in findings.levels],
        "edges": [_edge(edge) for edge in findings.edges],
        "ratios": [asdict(r) | {"workload": str(r.workload), "load": asdict(r.load)} for r in ratios(findings.levels)],
    }
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def level_row(level: LevelResult) -> dict[str, Any]:
    s = level.summary
    row: dict[str, Any] = {
        "server": level.target,
        "input_len": level.workload.input_len,
        "output_len": level.workload.output_len,
        "concurrency": level.load.concurrency,
        "request_rate": level.load.request_rate,
        "repeat": level.repeat,
        "completed": s.completed,
        "failed": s.failed,
        "duration_s": s.duration,
        "req_per_s": s.requests_per_s,
        "output_tok_per_s": s.output_tokens_per_s,
        "total_tok_per_s": s.total_tokens_per_s,
        "output_tok_per_s_per_gpu": level.output_tokens_per_s_per_gpu,
        "total_tok_per_s_per_gpu": level.total_tokens_per_s_per_gpu,
        "goodput_req_per_s": level.goodput,
        "slo_met": level.slo_met,
    }
    for name in ("ttft", "tpot", "itl", "e2e"):
        for aggregate, seconds in asdict(getattr(s, name)).items():
            row[f"{aggregate}_{name}_ms"] = seconds * 1e3
    return row


def _level(level: LevelResult) -> dict[str, Any]:
    return {
        "server": level.target,
        "workload": asdict(level.workload),
        "load": asdict(level.load),
        "repeat": level.repeat,
        "client_busy": level.client_busy,
        "output_tokens_per_s_per_gpu": level.output_tokens_per_s_per_gpu,
        "total_tokens_per_s_per_gpu": level.total_tokens_per_s_per_gpu,
        "goodput": level.goodput,
        "slo_met": level.slo_met,
        "summary": asdict(level.summary),
        "requests": [_request(record) for record in level.records],
    }


def _request(record: RequestRecord) -> dict[str, Any]:
    return asdict(record) | {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}


def _edge(edge: Edge) -> dict[str, Any]:
    best = edge.best
    return {
        "server": edge.target,
        "workload": asdict(edge.workload),
        "slo": str(edge.slo),
        "unbounded": edge.unbounded,
        "best": best and {"load": asdict(best.load), "summary": asdict(best.summary)},
    }
