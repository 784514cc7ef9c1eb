"""The live progress bar (on a terminal) and one line a level (everywhere), on stderr."""

from __future__ import annotations

from collections import deque
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from tandem_runtime.bench.serve.metrics import RequestRecord
from tandem_runtime.bench.serve.results import LevelResult


class RollingRate:
    """Growth per second of a counter over the last `window` seconds."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, now: float, total: int) -> float:
        self._samples.append((now, total))
        while self._samples[0][0] < now - self._window:
            self._samples.popleft()
        then, earlier = self._samples[0]
        return (total - earlier) / (now - then) if now > then else 0.0


class Display:
    """A `session.Watcher`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._chunks = 0
        self._failed = 0
        self._rate = RollingRate()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(self),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("connecting", total=None)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_text(self, chunks: int) -> None:
        self._chunks += chunks

    def level_started(self, title: str, requests: int) -> None:
        self._failed = 0
        self._rate = RollingRate()
        self._progress.reset(self._task, description=title, total=requests)

    def request_done(self, record: RequestRecord) -> None:
        self._failed += not record.ok
        self._progress.advance(self._task)

    def level_done(self, result: LevelResult) -> None:
        s = result.summary
        failed = f", [red]{s.failed} failed[/]" if s.failed else ""
        figures = ""
        if s.completed:
            figures = f", {s.output_tokens_per_s:.1f} output tok/s, "
            figures += f"TTFT {s.ttft.mean * 1e3:.0f} ms, TPOT {s.tpot.mean * 1e3:.1f} ms"
        self._console.print(
            f"{result.target} {result.workload} at {result.load}: {s.completed} done{failed}{figures}",
            highlight=False,
            soft_wrap=True,
        )

    def rate_text(self) -> Text:
        # Live only: until an answer ends, chunks are all that is known of its tokens.
        text = Text(f"~{self._rate.at(monotonic(), self._chunks):.0f} tok/s")
        if self._failed:
            text.append(f"  {self._failed} failed", style="red")
        return text


class _RateColumn(ProgressColumn):
    max_refresh = 0.25

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:
        return self._display.rate_text()
