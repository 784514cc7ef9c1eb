"""Stands in for `tandem serve` and `tandem gateway` at the process border: takes their flags, answers their URLs.

The model folder steers it: `refuse` holds the line to die with, `stubborn` makes it ignore SIGTERM. Each process
leaves `pids/PID` there, and each pod has a child, as an engine process would be.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tandem_contract.flags import GatewayFlags, ServeFlags, parse

ANSWER = ("Paris", ", of course.")
TRACE = {
    "decode_pod": "decode-0",
    "prefill_pod": "prefill-0",
    "prompt_tokens": 40,
    "cached_tokens": 0,
    "handoff_pages": 3,
    "handoff_bytes": 2048,
    "handoff_seconds": 0.012,
    "queue_seconds": 0.0,
    "ttft_seconds": 0.034,
    "tpot_seconds": 0.0056,
    "handoff_transport": "ipc",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._send(b'tandem_gateway_pods{role="prefill",state="ready"} 99\n')
        else:
            self._send(b'{"data": [{"id": "fake"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["stream"]
        assert asked["model"] == "fake"
        assert self.headers["X-Tandem-Timing"] == "1"
        news: list[dict[str, object]] = [{"choices": [{"delta": {"content": piece}}]} for piece in ANSWER]
        news.append({"choices": [], "usage": {"completion_tokens": 4}, "tandem": TRACE})
        self._send("".join(f"data: {json.dumps(item)}\n\n" for item in news).encode() + b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def end(engine: subprocess.Popen[bytes]) -> None:
    engine.kill()
    sys.exit()


def be_a_pod(model: Path) -> None:
    if (model / "refuse").exists():
        sys.exit((model / "refuse").read_text())
    engine = subprocess.Popen(["/bin/sleep", "1000"])
    stubborn = (model / "stubborn").exists()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: end(engine))
    (model / "pids").mkdir(exist_ok=True)
    for pid in (engine.pid, os.getpid()):
        (model / "pids" / str(pid)).touch()


def main(command: str, argv: list[str]) -> None:
    kinds: dict[str, type[GatewayFlags | ServeFlags]] = {"gateway": GatewayFlags, "serve": ServeFlags}
    flags = parse(kinds[command], argv)
    if isinstance(flags, ServeFlags):
        be_a_pod(Path(flags.model))
    print("2026-01-01 00:00:00,000 INFO    fake [-] loading weights: 40% of 0.3 GiB")
    print(f"{command} listens on {flags.port}", flush=True)
    api = ThreadingHTTPServer((flags.host, flags.port), Handler)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    ThreadingHTTPServer((flags.host, flags.metrics_port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
