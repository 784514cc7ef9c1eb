"""Compares `tandem fetch` with `aws s3 cp --recursive` and s5cmd: same S3 server, same files, runs alternating.

    PYTHONPATH=contract:runtime:tests python benchmarks/fetch_throughput.py --aws PATH/TO/aws [--s5cmd PATH/TO/s5cmd]

Starts SeaweedFS on loopback, uploads random shards as 8 MiB multipart (aws-cli's default) and prints medians.
`tandem fetch` also verifies every byte's MD5, preallocates and syncs; its peers do not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fetch.weed import ACCESS_KEY, BUCKET, SECRET_KEY, Weed

MIB = 2**20
TANDEM = [sys.executable, "-c", "import sys; from tandem_fetch.main import run; sys.exit(run(sys.argv[1:]))"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aws", help="aws-cli executable")
    parser.add_argument("--s5cmd", help="s5cmd executable")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--file-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where server and downloads live; default: the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        (Path(work) / "weed").mkdir()
        with Weed(Path(work) / "weed") as server:
            rng = random.Random(0)
            for index in range(args.files):
                data = b"".join(rng.randbytes(MIB) for _ in range(args.file_mib))
                server.upload(f"bench/shard-{index}.safetensors", data, part_size=8 * MIB)
            total = args.files * args.file_mib * MIB
            times: dict[str, list[float]] = {}
            for _ in range(args.rounds):
                for name, argv in commands(args, server.endpoint, f"{work}/out").items():
                    times.setdefault(name, []).append(timed(argv))
                    shutil.rmtree(f"{work}/out")
    report(times, total)


def commands(args: argparse.Namespace, endpoint: str, out: str) -> dict[str, list[str]]:
    source = f"s3://{BUCKET}/bench/"
    tandem = [*TANDEM, source, out, f"--endpoint={endpoint}"]
    named = {"tandem fetch": tandem, "tandem fetch --verify=size": [*tandem, "--verify=size"]}
    if args.aws:
        named["aws s3 cp"] = [args.aws, f"--endpoint-url={endpoint}", "s3", "cp", "--quiet", "--recursive", source, out]
    if args.s5cmd:
        named["s5cmd cp"] = [args.s5cmd, f"--endpoint-url={endpoint}", "cp", f"{source}*", f"{out}/"]
    return named


def timed(argv: list[str]) -> float:
    """Seconds, process start included."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    began = time.monotonic()
    subprocess.run(argv, env=os.environ | keys, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def report(times: dict[str, list[float]], total: int) -> None:
    ours = statistics.median(times["tandem fetch"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f}..{max(seconds):.2f} s"
        rate, of_peer = total / median / 1e6, median / ours
        print(f"{name:28} {rate:6.0f} MB/s  median {median:.2f} s ({spread})  ours/this {of_peer:.0%}")


if __name__ == "__main__":
    main()
