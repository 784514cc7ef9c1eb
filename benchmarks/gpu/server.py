"""A whole server of one model shape under load: `tandem serve` with random weights, `tandem bench serve` as the client.

    python benchmarks/gpu/server.py MODEL [--workload 3500:1500 ...] [--concurrency 64 32 16] [SERVE FLAGS]

Every level sends as many requests as it keeps in flight, all at once. Prints a JSON line a level.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from shapes import MODELS, folder

TANDEM = (sys.executable, "-m", "tandem_cli.main")
COLUMNS = (
    *("req_per_s", "output_tok_per_s", "total_tok_per_s"),
    *("ttft_mean_ms", "ttft_p99_ms", "tpot_mean_ms", "tpot_p99_ms", "itl_p99_ms", "failed"),
)


def main() -> None:
    args, serve_flags = _arguments()
    # Ended from outside, it ends the server too, which would keep the card's memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    with tempfile.TemporaryDirectory() as scratch:
        path = folder(args.model, Path(scratch))
        port, metrics_port = _free_ports()
        server = subprocess.Popen(
            [
                *(*TANDEM, "serve", f"--model={path}", "--load-format=dummy", f"--device={args.device}"),
                *("--host=127.0.0.1", f"--port={port}", f"--metrics-port={metrics_port}"),
                *(f"--max-num-seqs={max(args.concurrency)}", f"--max-model-len={args.max_model_len}"),
                *serve_flags,
            ],
            start_new_session=True,
        )
        try:
            began = time.monotonic()
            _wait_ready(server, metrics_port)
            print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
            for workload in args.workload:
                for concurrency in args.concurrency:
                    row = _level(port, workload, concurrency, Path(scratch) / "level.csv")
                    gap = _gap(metrics_port)
                    print(json.dumps({"workload": workload, "concurrency": concurrency} | row | gap), flush=True)
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


def _level(port: int, workload: str, concurrency: int, out: Path) -> dict[str, object]:
    subprocess.run(
        [
            *(*TANDEM, "bench", "serve", f"--base-url=http://127.0.0.1:{port}", f"--workload={workload}"),
            *(f"--concurrency={concurrency}", f"--num-prompts={concurrency}", "--warmup=1", f"--csv={out}"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with out.open() as file:
        row = next(csv.DictReader(file))
    return {name: round(float(row[name]), 2) for name in COLUMNS if row.get(name)}


def _gap(metrics_port: int) -> dict[str, object]:
    """Mean device idle time between steps since the server began, as it exports it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("tandem_step_gap_seconds_")}
    count = values.get("tandem_step_gap_seconds_count", 0.0)
    return {"mean gap us": round(values["tandem_step_gap_seconds_sum"] / count * 1e6, 1)} if count else {}


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--workload", nargs="+", default=["3500:1500"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--max-model-len", type=int, default=5120)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
