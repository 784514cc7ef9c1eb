"""Gateway and fake engines as processes of their own; every one is killed at the end of its block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem_contract.flags import GatewayFlags, to_argv

_PATH = os.pathsep.join(path for path in sys.path if path)
_GATEWAY = """
import sys
from tandem_contract.flags import GatewayFlags, parse
from tandem_gateway.main import run
sys.exit(run(parse(GatewayFlags, sys.argv[1:])))
"""


@dataclass
class GatewayProcess:
    process: subprocess.Popen[bytes]
    url: str
    metrics_url: str
    log: Path


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


@contextlib.contextmanager
def gateway_process(flags: GatewayFlags, folder: Path, *, core: int | None = None) -> Iterator[GatewayProcess]:
    """`flags` with ports 0; waits until the gateway calls itself ready."""
    log = folder / "gateway.log"
    with python("-c", _GATEWAY, *to_argv(flags), stderr=log, core=core) as process:
        listening = _wait_for_line(log, b'"message":"listening"', process)
        host = f"http://127.0.0.1:{json.loads(listening)['port']}"
        metrics = f"http://127.0.0.1:{json.loads(listening)['metrics_port']}"
        _wait_ready(metrics + "/readyz")
        yield GatewayProcess(process, host, metrics, log)


def _wait_for_line(path: Path, text: bytes, process: subprocess.Popen[bytes]) -> bytes:
    for _ in range(2000):
        for line in path.read_bytes().splitlines(keepends=True):
            if text in line and line.endswith(b"\n"):
                return line
        if process.poll() is not None:
            raise AssertionError(f"exited with {process.returncode}: {path.read_text()}")
        time.sleep(0.01)
    raise AssertionError(f"no {text!r} in {path.read_text()}")


def _wait_ready(url: str) -> None:
    for _ in range(2000):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.01)
    raise AssertionError(f"{url} is not ready")


def wait_for_file(path: Path) -> str:
    for _ in range(2000):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text().strip()
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")
