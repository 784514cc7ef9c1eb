"""The supervisor over small programs of its own kind, without a command line around it."""

import asyncio
import contextlib
import sys

import aiohttp
import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.child import Program
from tandem_runtime.local.ports import free_ports
from tandem_runtime.local.supervisor import State, Supervisor, restart_delay

pytestmark = pytest.mark.processes

SERVE = """
import http.server, os, signal, sys
{before}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


class Record:
    """A view that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.states: list[tuple[str, State, str]] = []
        self._changed = asyncio.Event()

    def line(self, name: str, text: str) -> None:
        self.lines.append(text)

    def state(self, name: str, state: State, detail: str = "") -> None:
        self.states.append((name, state, detail))
        self._changed.set()

    async def told(self, state: State, times: int) -> None:
        """Returns once it has been."""
        while [known for _, known, _ in self.states].count(state) < times:
            self._changed.clear()
            await self._changed.wait()


def server(name: str, before: str = "") -> Program:
    (port,) = free_ports("127.0.0.1", 1)
    code = SERVE.format(port=port, before=before)
    return Program(name, (sys.executable, "-c", code), f"http://127.0.0.1:{port}/")


def failing(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-c", code), "http://127.0.0.1:9/")


async def test_ready_when_all_are() -> None:
    view = Record()
    async with Supervisor([server("a"), server("b")], view, drain_s=10) as fleet:
        await fleet.wait_ready()
        assert {name for name, state, _ in view.states if state == "ready"} == {"a", "b"}
        assert fleet.was_ready
    assert {name for name, state, _ in view.states if state == "stopped"} == {"a", "b"}


async def test_a_program_that_ignores_sigterm_is_killed_after_the_drain() -> None:
    program = server("stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    view = Record()
    async with Supervisor([program], view, drain_s=0.2) as fleet:
        await fleet.wait_ready()
    assert view.states[-1] == ("stubborn", "stopped", "")


async def test_leaving_at_once_still_ends_what_was_just_started() -> None:
    view = Record()
    async with Supervisor([server("a")], view, drain_s=10):
        pass
    assert view.states[-1] == ("a", "stopped", "")


async def test_death_before_readiness_repeats_the_last_line() -> None:
    program = failing("pod", "import sys; print('loading'); sys.exit('tandem serve: no config.json in /m')")
    async with Supervisor([server("other"), program], Record(), drain_s=10) as fleet:
        with pytest.raises(StartupError, match=r"^pod: no config.json in /m$"):
            await fleet.wait_ready()


async def test_death_without_a_word_names_the_signal() -> None:
    async with Supervisor([failing("pod", "import os; os.kill(os.getpid(), 9)")], Record(), drain_s=10) as fleet:
        with pytest.raises(StartupError, match=r"^pod: was ended by SIGKILL$"):
            await fleet.wait_ready()


async def test_output_comes_in_lines_whatever_their_length_and_ending() -> None:
    code = "print('x' * 200_000); print('10%\\r20%\\rdone'); print('half', end='')"
    view = Record()
    async with Supervisor([failing("pod", code)], view, drain_s=10) as fleet:
        with pytest.raises(StartupError):
            await fleet.wait_ready()
    assert view.lines == ["x" * 200_000, "10%", "20%", "done", "half"]


async def test_a_program_that_was_ready_is_restarted_as_after_its_first_death() -> None:
    program, view = server("pod"), Record()
    async with Supervisor([program], view, drain_s=10) as fleet, aiohttp.ClientSession() as http:
        for deaths in (1, 2):
            await view.told("ready", deaths)
            with contextlib.suppress(aiohttp.ClientError):
                await http.get(program.ready_url + "die")
            await view.told("restarting", deaths)
        assert fleet.was_ready
    delays = [detail for _, state, detail in view.states if state == "restarting"]
    assert delays == ["in 0.5 s; it exited with status 1"] * 2


def test_restart_delay_doubles_up_to_half_a_minute() -> None:
    assert [restart_delay(failures) for failures in (1, 2, 3, 7, 2000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
