"""Findings as one picture: throughput against TPOT, and TTFT against the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tandem_runtime.bench.serve.results import Findings, LevelResult
from tandem_runtime.bench.serve.slo import Bound, Metric

_COLOURS = ("#1f6feb", "#d1570a", "#1a7f4b", "#8250df", "#bf3989", "#57606a")
_SLO_COLOUR = "#b42318"


def write_plot(findings: Findings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    throughput, ttft = figure.subplots(1, 2)
    for colour, (name, levels) in zip(_COLOURS * len(findings.levels), _series(findings.levels), strict=False):
        _draw_throughput(throughput, name, levels, colour)
        _draw_ttft(ttft, name, levels, colour)
    open_loop = any(level.load.request_rate is not None for level in findings.levels)
    _finish(throughput, "Throughput against speed per user", "mean TPOT (ms)", "output tokens/s")
    _finish(ttft, "Time to first token", "requests/s offered" if open_loop else "concurrency", "TTFT (ms)")
    ttft.set_xscale("log", base=2)
    ttft.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bounds = _bounds(findings)
    _draw_bounds(throughput.axvline, bounds, "tpot")
    _draw_bounds(ttft.axhline, bounds, "ttft")
    for axes in (throughput, ttft):
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, format="png", dpi=140)


def _series(levels: Sequence[LevelResult]) -> list[tuple[str, list[LevelResult]]]:
    """A line for each server and workload, with its complete levels by rising load."""
    lines: dict[str, list[LevelResult]] = {}
    for level in levels:
        if level.summary.completed:
            lines.setdefault(f"{level.target}  {level.workload}", []).append(level)
    return [(name, sorted(line, key=_load)) for name, line in lines.items()]


def _load(level: LevelResult) -> float:
    """Where a level stands on the load axis."""
    return level.load.request_rate or level.load.concurrency or 0.0


def _draw_throughput(axes: Any, name: str, levels: list[LevelResult], colour: str) -> None:
    xs = [level.summary.tpot.mean * 1e3 for level in levels]
    ys = [level.summary.output_tokens_per_s for level in levels]
    axes.plot(xs, ys, marker="o", markersize=5, linewidth=1.8, color=colour, label=name)
    for level, x, y in zip(levels, xs, ys, strict=True):
        axes.annotate(
            f"{_load(level):g}", (x, y), xytext=(5, -11), textcoords="offset points", fontsize=8, color=colour
        )


def _draw_ttft(axes: Any, name: str, levels: list[LevelResult], colour: str) -> None:
    xs = [_load(level) for level in levels]
    mean = [level.summary.ttft.mean * 1e3 for level in levels]
    p99 = [level.summary.ttft.p99 * 1e3 for level in levels]
    axes.plot(xs, mean, marker="o", markersize=5, linewidth=1.8, color=colour, label=f"{name}  mean")
    axes.plot(xs, p99, marker="^", markersize=5, linewidth=1.2, linestyle="--", color=colour, label=f"{name}  P99")


def _bounds(findings: Findings) -> list[Bound]:
    slos = [level.slo for level in findings.levels] + [edge.slo for edge in findings.edges]
    return list(dict.fromkeys(bound for slo in slos for bound in slo.bounds))


def _draw_bounds(line: Any, bounds: Sequence[Bound], metric: Metric) -> None:
    for bound in bounds:
        if bound.metric == metric:
            line(bound.seconds * 1e3, color=_SLO_COLOUR, linewidth=1.2, linestyle=":", label=f"SLO {bound}")


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xmargin(0.08)
    axes.set_ylim(bottom=0)
