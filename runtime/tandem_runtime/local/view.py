"""What a person at the terminal sees of a fleet: who is still starting, prefixed log lines, restarts."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from tandem_runtime.local.supervisor import State

PERCENT = re.compile(r"\b(\d{1,2})%")
LOG_PREFIX = re.compile(r"^[\d-]+ [\d:,]+ [A-Z]+ .*?\] ")
"""Of the pods' text log: time, level, logger and request id."""
STYLES = ("cyan", "green", "magenta", "yellow", "blue", "red")


class TerminalView:
    """Shows one live row for each process inside `starting()` on a terminal, plain lines elsewhere and after.

    `echo`: print the processes' lines, each with its name. `log_dir`: also write them to NAME.log there.
    """

    def __init__(self, console: Console, names: list[str], *, echo: bool, log_dir: Path | None) -> None:
        self._console = console
        self._echo = echo
        self._rows_suffice = console.is_terminal and not echo
        self._width = max(map(len, names))
        self._styles = {name: STYLES[index % len(STYLES)] for index, name in enumerate(names)}
        self._files = {name: (log_dir / f"{name}.log").open("w") for name in names} if log_dir else {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.fields[program]:<" + str(self._width) + "}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._rows: dict[str, TaskID] = {name: self._progress.add_task("", total=100, program=name) for name in names}

    def __enter__(self) -> TerminalView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def starting(self) -> AbstractContextManager[object]:
        return self._progress

    def line(self, name: str, text: str) -> None:
        if file := self._files.get(name):
            file.write(text + "\n")
            file.flush()
        if self._echo:
            self._print(name, text)
        percent = PERCENT.search(text)
        self._progress.update(
            self._rows[name],
            description=LOG_PREFIX.sub("", text),
            completed=int(percent[1]) if percent else None,
        )

    def state(self, name: str, state: State, detail: str = "") -> None:
        row = self._rows[name]
        if state == "ready":
            self._progress.update(row, completed=100, description="ready")
        else:
            self._progress.reset(row, description=state)
        if state == "restarting" or not self._rows_suffice:
            self._print(name, f"{state} {detail}".rstrip())

    def _print(self, name: str, text: str) -> None:
        self._console.print(
            Text.assemble((f"{name:<{self._width}} | ", self._styles[name]), text), soft_wrap=True, highlight=False
        )
