"""Findings as one picture: throughput against TPOT, and TTFT against the load."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tandem_runtime.bench.serve.results import Findings, LevelResult
from tandem_runtime.bench.serve.slo import Bound, format_seconds

_COLOURS = ("#1f6feb", "#d1570a", "#1a7f4b", "#8250df", "#bf3989", "#57606a")
_SLO_LINE: dict[str, Any] = {"color": "#b42318", "linewidth": 1.2, "linestyle": ":"}
_SLO_TEXT: dict[str, Any] = {"color": "#b42318", "fontsize": 8, "va": "bottom"}


def write_plot(findings: Findings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    throughput, ttft = figure.subplots(1, 2)
    for colour, (name, levels) in zip(cycle(_COLOURS), _series(findings.levels), strict=False):
        _draw_throughput(throughput, name, levels, colour)
        _draw_ttft(ttft, name, levels, colour)
    load = "requests/s offered" if any(level.load.request_rate for level in findings.levels) else "concurrency"
    _finish(throughput, "Throughput", f"mean TPOT (ms), points labelled with {load}", "output tokens/s")
    _finish(ttft, "Time to first token", load, "TTFT (ms)")
    ttft.set_xscale("log", base=2)
    ttft.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bounds = _bounds(findings)
    _draw_tpot_bounds(throughput, [b for b in bounds if b.metric == "tpot" and b.aggregate == "mean"])
    _draw_ttft_bounds(ttft, [b for b in bounds if b.metric == "ttft"])
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
        place = {"xytext": (5, -11), "textcoords": "offset points"}
        axes.annotate(f"{_load(level):g}", (x, y), fontsize=8, color=colour, **place)


def _draw_ttft(axes: Any, name: str, levels: list[LevelResult], colour: str) -> None:
    xs = [_load(level) for level in levels]
    mean = [level.summary.ttft.mean * 1e3 for level in levels]
    p99 = [level.summary.ttft.p99 * 1e3 for level in levels]
    axes.plot(xs, mean, marker="o", markersize=5, linewidth=1.8, color=colour, label=f"{name}  mean")
    axes.plot(xs, p99, marker="^", markersize=5, linewidth=1.2, linestyle="--", color=colour, label=f"{name}  P99")


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xmargin(0.08)
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def _bounds(findings: Findings) -> list[Bound]:
    slos = [level.slo for level in findings.levels] + [edge.slo for edge in findings.edges]
    return list(dict.fromkeys(bound for slo in slos for bound in slo.bounds))


def _draw_tpot_bounds(axes: Any, bounds: Sequence[Bound]) -> None:
    for bound in _within_reach(bounds, axes.get_xlim()[1]):
        x = bound.seconds * 1e3
        axes.axvline(x, **_SLO_LINE)
        axes.text(
            x, 1.005, format_seconds(bound.seconds), transform=axes.get_xaxis_transform(), ha="center", **_SLO_TEXT
        )


def _draw_ttft_bounds(axes: Any, bounds: Sequence[Bound]) -> None:
    shown = _within_reach(bounds, axes.get_ylim()[1])
    for bound in shown:
        y = bound.seconds * 1e3
        axes.axhline(y, **_SLO_LINE)
        axes.text(1.0, y, str(bound), transform=axes.get_yaxis_transform(), ha="right", **_SLO_TEXT)
    if shown:
        axes.set_ylim(top=max(axes.get_ylim()[1], max(b.seconds for b in shown) * 1e3 * 1.08))


def _within_reach(bounds: Sequence[Bound], axis_end: float) -> list[Bound]:
    """A bound far beyond what was measured would only squash the picture."""
    return [b for b in bounds if b.seconds * 1e3 <= 2 * axis_end]
