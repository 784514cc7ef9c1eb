"""The life of one fleet under signals: start, ready, serve, end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

from tandem_runtime.local.child import Program
from tandem_runtime.local.supervisor import Supervisor
from tandem_runtime.local.view import TerminalView

INTERRUPTED = 130


async def run_fleet(
    programs: list[Program],
    view: TerminalView,
    *,
    drain_s: float,
    on_ready: Callable[[], Awaitable[None]],
    serve: bool = True,
) -> int:
    """Exit status. Runs `on_ready` when all pods are, then serves until SIGINT, SIGTERM or SIGHUP if `serve`.

    A second signal kills at once instead of draining. Raises `StartupError` when a pod gives up before it was ready,
    and whatever `on_ready` raises; in every case no process is left.
    """
    stop = asyncio.Event()
    async with Supervisor(programs, view, drain_s=drain_s) as fleet:

        def on_signal() -> None:
            if stop.is_set():
                fleet.kill()
            else:
                print("\nEnding; once more ends it at once.", file=sys.stderr, flush=True)
                stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)

        async def live() -> None:
            with view.starting():
                await fleet.wait_ready()
            await on_ready()
            if serve:
                await fleet.watch()

        living, stopped = asyncio.create_task(live()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([living, stopped], return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
            return 0 if fleet.was_ready else INTERRUPTED
        finally:
            living.cancel()
            stopped.cancel()
