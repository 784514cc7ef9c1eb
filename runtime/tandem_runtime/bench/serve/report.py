"""Findings as tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tandem_runtime.bench.serve.metrics import Distribution
from tandem_runtime.bench.serve.results import Edge, Findings, LevelResult, Ratio, ratios

_MOST_ERRORS = 5
_BUSY = 0.8


def print_report(findings: Findings, console: Console) -> None:
    if findings.levels:
        console.print(throughput_table(findings.levels))
        console.print(latency_table(findings.levels))
    if found := ratios(findings.levels):
        console.print(ratio_table(findings.levels[0].target, found))
    if findings.edges:
        console.print(slo_table(findings.edges))
    for line in warnings(findings):
        console.print(line, style="yellow", highlight=False, markup=False)


def throughput_table(levels: Sequence[LevelResult]) -> Table:
    table = _table("Throughput", "server", "in:out", "load", "done", "failed", "seconds", "req/s", "output\ntok/s",
                   "total\ntok/s", "output\n/GPU", "total\n/GPU", "goodput\nreq/s", "SLO")  # fmt: skip
    for level in levels:
        s = level.summary
        table.add_row(
            level.target,
            str(level.workload),
            str(level.load),
            str(s.completed),
            f"[red]{s.failed}[/]" if s.failed else "0",
            f"{s.duration:.1f}",
            f"{s.requests_per_s:.2f}",
            f"{s.output_tokens_per_s:.1f}",
            f"{s.total_tokens_per_s:.1f}",
            f"{level.output_tokens_per_s_per_gpu:.1f}",
            f"{level.total_tokens_per_s_per_gpu:.1f}",
            _number(level.goodput, 2),
            {None: "-", True: "[green]met[/]", False: "[red]missed[/]"}[level.slo_met],
        )
    return table


def latency_table(levels: Sequence[LevelResult]) -> Table:
    table = _table("Latency in ms: mean / median / P99", "server", "in:out", "load", "TTFT", "TPOT", "ITL", "E2E")
    for level in levels:
        s = level.summary
        cells = (_milliseconds(s.ttft), _milliseconds(s.tpot), _milliseconds(s.itl), _milliseconds(s.e2e))
        table.add_row(level.target, str(level.workload), str(level.load), *cells)
    return table


def ratio_table(target: str, found: Sequence[Ratio]) -> Table:
    table = _table(f"{target} / peer", "peer", "in:out", "load", "output tok/s", "mean TTFT", "mean TPOT")
    for r in found:
        figures = (f"{_number(v, 2)}x" for v in (r.output_tokens_per_s, r.mean_ttft, r.mean_tpot))
        table.add_row(r.peer, str(r.workload), str(r.load), *figures)
    return table


def slo_table(edges: Sequence[Edge]) -> Table:
    """The columns of the field's tables: the highest throughput inside each TPOT bound."""
    table = _table("Highest throughput inside the SLO", "server", "SLO", "input\nlen", "output\nlen", "at",
                   "req/s", "output\ntok/s", "total\ntok/s", "output\n/GPU", "total\n/GPU", "mean\nTPOT",
                   "mean\nTTFT")  # fmt: skip
    for edge in edges:
        head = (edge.target, str(edge.slo), str(edge.workload.input_len), str(edge.workload.output_len))
        if edge.best is None:
            table.add_row(*head, "[red]none[/]", *["-"] * 7)
            continue
        best, s = edge.best, edge.best.summary
        table.add_row(
            *head,
            f"{best.load}{'+' if edge.unbounded else ''}",
            f"{s.requests_per_s:.2f}",
            f"{s.output_tokens_per_s:.1f}",
            f"{s.total_tokens_per_s:.1f}",
            f"{best.output_tokens_per_s_per_gpu:.1f}",
            f"{best.total_tokens_per_s_per_gpu:.1f}",
            f"{s.tpot.mean * 1e3:.1f} ms",
            f"{s.ttft.mean * 1e3:.0f} ms",
        )
    return table


def warnings(findings: Findings) -> list[str]:
    lines = []
    for level in findings.levels:
        where = f"{level.target} {level.workload} at {level.load}"
        errors = level.summary.errors
        lines += [f"{where}: {count} x {message}" for message, count in errors[:_MOST_ERRORS]]
        if len(errors) > _MOST_ERRORS:
            rest = sum(count for _, count in errors[_MOST_ERRORS:])
            lines.append(f"{where}: {rest} x other errors (see --json)")
        if level.wrong_inputs:
            lines.append(f"{where}: {level.wrong_inputs} prompts were not {level.workload.input_len} tokens by the "
                         "server's count; total tok/s uses the server's")  # fmt: skip
        if level.client_busy > _BUSY:
            lines.append(f"{where}: this client used {level.client_busy:.0%} of a core and may be the bottleneck")
    if any(edge.unbounded for edge in findings.edges):
        lines.append("+: the SLO still held at --max-concurrency; raise it to find the edge")
    return lines


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True)
    text = {"server", "peer", "in:out", "load", "SLO"}
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right", no_wrap=True)
    return table


def _milliseconds(d: Distribution) -> str:
    return " / ".join(_number(value * 1e3, 1) for value in (d.mean, d.median, d.p99))


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
