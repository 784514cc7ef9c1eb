"""A prefill and a decode process on one card (`tandem up`, pages by CUDA IPC) against one process that does both.

    python benchmarks/gpu/together.py [MODEL] [--workload 3500:500] [--concurrency 16] [--device cuda]

Random weights, which the two processes hold twice; each way gets the same share of the card. Prints a JSON line a way.
Fails where the pages took another way than was asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path

from serving import measured, running
from shapes import MODELS, folder
from tandem_runtime.local.joined import pods_joined

MAPPED = "reading KV pages in another process's memory"
"""A decode process's line at its first handoff by IPC."""


def main() -> None:
    args, engine = _arguments()
    # Ended from outside, it ends what it started too, which would keep the card's memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    with tempfile.TemporaryDirectory() as scratch:
        model = f"--model={folder(args.model, Path(scratch))}"
        engine += ["--load-format=dummy", f"--device={args.device}", f"--max-num-seqs={args.concurrency}"]
        engine += [f"--max-model-len={args.max_model_len}"]
        ways = {
            "tandem serve": (["serve", model, *engine], []),
            "tandem up, ipc": (["up", model, f"--log-dir={scratch}"], [*engine, "--kv-transport=ipc"]),
        }
        alone = 0.0
        for name, (argv, after) in ways.items():
            with running(argv, after) as (port, metrics_port):
                if after:
                    asyncio.run(pods_joined(f"http://127.0.0.1:{metrics_port}/metrics", prefill=1))
                row = measured(port, args.workload, args.concurrency, Path(scratch) / "level.csv")
            if after and MAPPED not in (Path(scratch) / "decode-0.log").read_text():
                sys.exit("the decode process never mapped the prefill process's memory; see its log")
            alone = alone or row["output_tok_per_s"]
            ratio = round(row["output_tok_per_s"] / alone, 2)
            print(json.dumps({"way": name} | row | {"of tandem serve": ratio}), flush=True)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=MODELS, default="Qwen3-8B", help="default: %(default)s")
    parser.add_argument("--workload", default="3500:500")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=5120)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
