"""One supervised process: leader of its own process group, bound to the supervisor's life, its output in lines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


def tethered(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` bound to die with this process."""
    return [sys.executable, str(Path(__file__).with_name("tether.py")), str(os.getpid()), *argv]


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    argv: tuple[str, ...]
    """The program's absolute path first."""
    ready_url: str
    """Answers 200 once the program serves."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Over the supervisor's own environment."""


class Child:
    """A started `Program`. `on_line(text)` gets each line of its stdout and stderr."""

    def __init__(
        self, process: asyncio.subprocess.Process, output: asyncio.StreamReader, on_line: Callable[[str], None]
    ) -> None:
        self._process = process
        self._on_line = on_line
        self._reading = asyncio.create_task(self._read(output))
        self.last_line = ""

    @classmethod
    async def start(cls, program: Program, on_line: Callable[[str], None]) -> Child:
        # A pipe of our own rather than asyncio's: with that one, `process.wait()` returns only when every
        # grandchild has closed it too.
        read_fd, write_fd = os.pipe()
        output = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_fd, "rb")
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *tethered(program.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
                env={**os.environ, **program.env},
                # The terminal's Ctrl-C reaches the supervisor alone.
                start_new_session=True,
            )
        finally:
            os.close(write_fd)
        return cls(process, output, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """Asks the program alone: its own children must go on until it has drained."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the program and all that is left of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Returns once the process is gone, the rest of its group killed and its output read."""
        await self._process.wait()
        self.kill()
        await self._reading

    @property
    def ending(self) -> str:
        """After `wait`: how the process ended."""
        status = self._process.returncode
        if status is not None and status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    async def _read(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(65536):
            # \r too: progress bars redraw one line.
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._emit(line)
        self._emit(rest)

    def _emit(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self.last_line = text
            self._on_line(text)
