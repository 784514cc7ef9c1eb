"""A whole server of one model shape under load: `tandem serve` with random weights, `tandem bench serve` as the client.

    python benchmarks/gpu/server.py MODEL [--workload 3500:1500 ...] [--tpot 40 30 20] [--kept FILE] [SERVE FLAGS]

Sweeps the concurrency to the edge of each bound on the mean TPOT (ms) by the client's own planner, no further than
where the requests' KV pages fill the card. Every level sends as many requests as it keeps in flight, all at once, and
so takes a minute: several waves would give steadier figures and not fit the ten minutes that a card is lent for. Prints
a JSON line a level, beside its floor, and one a bound. Levels in FILE are not measured again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from floors import ceilings_of, server_floor
from serving import measured, running
from shapes import MODELS, folder
from sweep import Kept, Row, edges, fitting
from tandem_contract.flags import ServeFlags, parse
from tandem_contract.metrics import KV_PAGES
from tandem_runtime.bench.roofline import Ceilings, Shape
from tandem_runtime.bench.serve.workload import parse_workload


def main() -> None:
    args, serve_flags = _arguments()
    # Ended from outside, it ends the server too, which would keep the card's memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    page_size = parse(ServeFlags, ["--model=-", *serve_flags]).page_size
    shape, ceilings, kept = _shape(args.model, serve_flags), ceilings_of(_card(args.device)), Kept(args.kept)
    with tempfile.TemporaryDirectory() as scratch:
        path = folder(args.model, Path(scratch))
        argv = [
            *("serve", f"--model={path}", "--load-format=dummy", f"--device={args.device}"),
            *(f"--max-num-seqs={args.max_concurrency}", f"--max-model-len={args.max_model_len}"),
            *serve_flags,
        ]
        with running(argv) as (port, metrics_port):
            for workload in args.workload:

                def level(concurrency: int, workload: str = workload) -> Row:
                    row = measured(port, workload, concurrency, Path(scratch) / "level.csv") | _gap(metrics_port)
                    return beside_floor(row, shape, workload, concurrency, ceilings)

                shown = set[int]()

                def measure(concurrency: int, workload: str = workload, shown: set[int] = shown) -> Row:
                    key = " ".join([args.model, *serve_flags, workload, str(concurrency)])
                    row = kept.level(key, lambda: level(concurrency))
                    if concurrency not in shown:
                        shown.add(concurrency)
                        print(json.dumps(row), flush=True)
                    return row

                pages = int(_metrics(metrics_port)[KV_PAGES.name])
                most = min(args.max_concurrency, fitting(parse_workload(workload), pages, page_size))
                if most < args.max_concurrency:
                    note = f"the card has {pages} KV pages: no more than {most} requests of this length"
                    print(json.dumps({"workload": workload, "note": note}), flush=True)
                limits = {"start": min(args.min_concurrency, most), "maximum": most}
                for edge in edges(args.tpot, measure, **limits):
                    print(json.dumps(edge), flush=True)


def beside_floor(row: Row, shape: Shape, workload: str, concurrency: int, ceilings: Ceilings) -> Row:
    floor = server_floor(shape, parse_workload(workload), concurrency, ceilings)
    return row | {
        "floor TTFT ms": round(floor.ttft * 1e3, 1),
        "floor TPOT ms": round(floor.tpot * 1e3, 2),
        "floor output tok/s": round(floor.output_tokens_per_s, 1),
        "of floor": round(row["output_tok_per_s"] / floor.output_tokens_per_s, 2),
    }


def _shape(model: str, serve_flags: list[str]) -> Shape:
    return Shape.of(
        MODELS[model].config,
        weight_bytes=1.0 if "--quantization=fp8" in serve_flags else 2.0,
        kv_bytes=1.0 if "--kv-cache-dtype=fp8" in serve_flags else 2.0,
    )


def _card(device: str) -> str:
    """Asked by a process of its own: a CUDA context here would take memory from the server."""
    if device == "cpu":
        return "H200, not this device"
    ask = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def _gap(metrics_port: int) -> dict[str, object]:
    """Mean device idle time between steps since the server began, as it exports it."""
    values = _metrics(metrics_port)
    count = values.get("tandem_step_gap_seconds_count", 0.0)
    return {"mean gap us": round(values["tandem_step_gap_seconds_sum"] / count * 1e6, 1)} if count else {}


def _metrics(port: int) -> dict[str, float]:
    """Those without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        words = [line.split() for line in response.read().decode().splitlines()]
    return {name: float(value) for name, value, *_ in words if name.startswith("tandem_") and "{" not in name}


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--workload", nargs="+", default=["3500:1500"])
    parser.add_argument("--tpot", type=float, nargs="+", default=[40, 30, 20], metavar="MS")
    parser.add_argument("--min-concurrency", type=int, default=8)
    parser.add_argument("--max-concurrency", type=int, default=64)
    parser.add_argument("--kept", type=Path, metavar="FILE")
    parser.add_argument("--max-model-len", type=int, default=5120)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
