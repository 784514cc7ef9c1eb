"""Keeps the processes of a fleet running: starts them, says when all are ready, restarts what dies, ends them all."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Literal, Protocol

import aiohttp

from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.child import Child, Program

State = Literal["starting", "ready", "restarting", "stopped"]
READY_POLL_S = 0.1
BACKOFF_CAP_S = 30.0


class View(Protocol):
    """Where the fleet's news go."""

    def line(self, name: str, text: str) -> None:
        """One line of the program's output."""

    def state(self, name: str, state: State, detail: str = "") -> None: ...


def restart_delay(failures: int) -> float:
    """Seconds to wait after `failures` deaths in a row, the last ones before readiness: 0.5, 1, 2 .. 30."""
    return min(0.5 * 2.0 ** min(failures - 1, 10), BACKOFF_CAP_S)


def _own_words(child: Child) -> str:
    return re.sub(r"^tandem \w+: ", "", child.last_line) or child.ending


class Supervisor:
    """Async context manager; leaving it leaves no process behind.

    A program that dies before it was ever ready is a mistake to report, not to retry: `wait_ready` raises
    `StartupError` with the program's own last line. Later deaths are restarts with the same arguments.
    """

    def __init__(self, programs: list[Program], view: View, *, drain_s: float) -> None:
        self._programs = programs
        self._view = view
        self._drain_s = drain_s
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._never_ready = {program.name for program in programs}
        self._all_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._end = Child.terminate

    async def __aenter__(self) -> Supervisor:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))
        self._keepers = [asyncio.create_task(self._keep(program)) for program in self._programs]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_all()
        _, alive = await asyncio.wait(self._keepers, timeout=self._drain_s)
        if alive:
            self.kill()
            await asyncio.wait(alive)
        await self._http.close()

    def kill(self) -> None:
        """Ends every process at once, without drain."""
        self._end = Child.kill
        self._end_all()

    @property
    def was_ready(self) -> bool:
        return not self._never_ready

    async def wait_ready(self) -> None:
        """Returns when every program has been ready once; raises `StartupError` when one gave up."""
        await self._first_of(asyncio.create_task(self._all_ready.wait()))

    async def watch(self) -> None:
        """Restarts what dies until cancelled."""
        await self._first_of(asyncio.create_task(self._stopping.wait()))

    async def _first_of(self, event: asyncio.Task[Literal[True]]) -> None:
        try:
            done, _ = await asyncio.wait([event, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            event.cancel()
        for task in done:
            task.result()

    def _end_all(self) -> None:
        self._stopping.set()
        for child in self._children.values():
            self._end(child)

    async def _keep(self, program: Program) -> None:
        failures = 0
        while True:
            self._view.state(program.name, "starting")
            child, was_ready = await self._run(program)
            if self._stopping.is_set():
                break
            if program.name in self._never_ready:
                raise StartupError(f"{program.name}: {_own_words(child)}")
            failures = 1 if was_ready else failures + 1
            delay = restart_delay(failures)
            self._view.state(program.name, "restarting", f"in {delay:g} s; it {child.ending}")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                break
        self._view.state(program.name, "stopped")

    async def _run(self, program: Program) -> tuple[Child, bool]:
        """One life of the program: the child after its death, and whether it was ready before."""
        child = await Child.start(program, partial(self._view.line, program.name))
        self._children[program.name] = child
        if self._stopping.is_set():
            self._end(child)
        readiness = asyncio.create_task(self._poll_ready(program))
        await child.wait()
        del self._children[program.name]
        was_ready = readiness.done()
        readiness.cancel()
        return child, was_ready

    async def _poll_ready(self, program: Program) -> None:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self._http.get(program.ready_url) as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(READY_POLL_S)
        self._view.state(program.name, "ready")
        self._never_ready.discard(program.name)
        if not self._never_ready:
            self._all_ready.set()
