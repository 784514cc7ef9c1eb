"""`tandem serve` or `tandem up` while a benchmark runs, and one level of load on it by `tandem bench serve`."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweep import Row

TANDEM = (sys.executable, "-m", "tandem_cli.main")
COLUMNS = (
    *("req_per_s", "output_tok_per_s", "total_tok_per_s", "output_tok_per_s_per_gpu", "total_tok_per_s_per_gpu"),
    *("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "p99_itl_ms"),
)


@contextmanager
def running(argv: Sequence[str], engine_argv: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    """The ports of its API and metrics, once it is ready; `engine_argv`: what stands after `--`."""
    port, metrics_port = _free_ports()
    listen = ("--host=127.0.0.1", f"--port={port}", f"--metrics-port={metrics_port}")
    after = ("--", *engine_argv) if engine_argv else ()
    server = subprocess.Popen([*TANDEM, *argv, *listen, *after], start_new_session=True)
    try:
        began = time.monotonic()
        _wait_ready(server, metrics_port)
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        yield port, metrics_port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait_ready(server: subprocess.Popen[bytes], metrics_port: int) -> None:
    while True:
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/readyz", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


def measured(port: int, workload: str, concurrency: int, out: Path) -> Row:
    subprocess.run(
        [
            *(*TANDEM, "bench", "serve", f"--base-url=http://127.0.0.1:{port}", f"--workload={workload}"),
            *(f"--concurrency={concurrency}", f"--num-prompts={concurrency}", "--warmup=1", f"--csv={out}"),
            "--allow-failures",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with out.open() as file:
        row = next(csv.DictReader(file))
    figures = {name: round(float(row[name]), 2) for name in COLUMNS}
    return {"workload": workload, "concurrency": concurrency} | figures | {"failed": int(row["failed"])}


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return int(one.getsockname()[1]), int(other.getsockname()[1])
