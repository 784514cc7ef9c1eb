"""Gateway and fake engines as processes of their own; every one is killed at the end of its block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from gateway.eventually import eventually
from tandem_contract.flags import GatewayFlags, to_argv

_PATH = os.pathsep.join(path for path in sys.path if path)
_GATEWAY = """
import sys
from tandem_contract.flags import GatewayFlags, parse
from tandem_gateway.main import run
sys.exit(run(parse(GatewayFlags, sys.argv[1:])))
"""
START_S = 30.0


@dataclass
class GatewayProcess:
    process: subprocess.Popen[bytes]
    url: str
    metrics_url: str


@contextlib.contextmanager
def python(*args: str, stderr: Path | None = None, core: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(stderr.open("wb")) if stderr else None
        process = subprocess.Popen([sys.executable, *args], stderr=errors, env={**os.environ, "PYTHONPATH": _PATH})
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            yield process
        finally:
            process.kill()
            process.wait()


def gateway_command(flags: GatewayFlags) -> tuple[str, ...]:
    return ("-c", _GATEWAY, *to_argv(flags))


@contextlib.asynccontextmanager
async def gateway_process(
    flags: GatewayFlags, folder: Path, *, core: int | None = None
) -> AsyncIterator[GatewayProcess]:
    """`flags` with ports 0 and JSON logs; waits until the gateway calls itself ready."""
    log = folder / "gateway.log"
    with python(*gateway_command(flags), stderr=log, core=core) as process:

        async def listening() -> bool:
            assert process.poll() is None, log.read_text()
            return b'"message":"listening"' in log.read_bytes().rpartition(b"\n")[0]

        await eventually(listening, within=START_S)
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        ports = next(line for line in lines if line["message"] == "listening")
        gateway = GatewayProcess(
            process, f"http://127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['metrics_port']}"
        )
        await status_becomes(gateway.metrics_url + "/readyz", 200)
        yield gateway


async def written(path: Path) -> str:
    """The line that another process writes to `path`, once it is there."""

    async def complete() -> bool:
        return _read(path).endswith("\n")

    await eventually(complete, within=START_S)
    return _read(path).strip()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def status_becomes(url: str, status: int) -> None:
    async with aiohttp.ClientSession() as session:

        async def is_so() -> bool:
            async with session.get(url) as answer:
                return answer.status == status

        await eventually(is_so, within=START_S)
