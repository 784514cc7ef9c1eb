"""What the KV transport of a local fleet costs: TTFT of a prompt and TPOT of its answer, over each transport in turns.

    python benchmarks/local_fleet.py [--transports tcp ipc] [--prompt 2048] [--answer 64] [--rounds 8]

One fleet (`tandem up`: gateway, a prefill and a decode process of the demo model) for each transport, all at once;
those that are not asked idle. In every round each is asked once, in changing order, with numbers that no cache knows.
Prints medians, and the median of the rounds' ratios to the first transport: also of the CPU's time, which is steadier.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
from long_prompt import free_port, ready
from tandem_contract import headers


class Fleet(NamedTuple):
    url: str
    process: psutil.Process

    def cpu_ms(self) -> float:
        """Of all its processes so far."""
        return 1e3 * sum(sum(each.cpu_times()[:2]) for each in self.process.children(recursive=True))


class Asked(NamedTuple):
    """Milliseconds."""

    ttft: float
    tpot: float
    prompt_cpu: float
    """Of all the fleet's processes, until the first token."""
    token_cpu: float
    """And for each token after it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", choices=("tcp", "ipc", "nixl"), default=["tcp", "ipc"])
    parser.add_argument("--prompt", type=int, default=2048, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs, ExitStack() as running:
        fleets = {name: running.enter_context(fleet(name, Path(logs))) for name in args.transports}
        rounds = asyncio.run(in_turns(fleets, args))
    print(f"{'':6}" + "".join(f"{name + ' ms':>16}{'ratio':>7}" for name in Asked._fields))
    for name in args.transports:
        cells = []
        for i in range(len(Asked._fields)):
            found, first = ([each[way][i] for each in rounds] for way in (name, args.transports[0]))
            ratio = statistics.median(x / y for x, y in zip(found, first, strict=True))
            cells.append(f"{statistics.median(found):>16.1f}{ratio:>7.2f}")
        print(f"{name:6}" + "".join(cells))


@contextmanager
def fleet(transport: str, logs: Path) -> Iterator[Fleet]:
    port, metrics_port = free_port(), free_port()
    argv = [f"--port={port}", f"--metrics-port={metrics_port}", "--", f"--kv-transport={transport}"]
    with (logs / transport).open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tandem_cli.main", "up", *argv, "--kv-cache-memory=512MiB"], stdout=log, stderr=log
        )
        try:
            if not asyncio.run(ready(f"http://127.0.0.1:{metrics_port}/readyz", process)):
                raise SystemExit(f"{transport} did not start:\n{Path(log.name).read_text()[-3000:]}")
            yield Fleet(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


async def in_turns(fleets: dict[str, Fleet], args: argparse.Namespace) -> list[dict[str, Asked]]:
    rng = random.Random(0)
    rounds = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
        for number in range(args.rounds + 1):
            prompt = [rng.randrange(1000, 40_000) for _ in range(args.prompt)]
            order = list(fleets) if number % 2 else list(reversed(fleets))
            rounds.append({name: await ask(http, fleets[name], prompt, args.answer) for name in order})
            said = {name: [round(x) for x in each] for name, each in rounds[-1].items()}
            print(number or "warm-up", said, flush=True)
    return rounds[1:]


async def ask(http: aiohttp.ClientSession, fleet: Fleet, prompt: list[int], answer: int) -> Asked:
    async with http.get(f"{fleet.url}/v1/models") as models:
        model = (await models.json())["data"][0]["id"]
    # With logprobs each token has an event, also where it is part of a character.
    body = {"model": model, "prompt": prompt, "max_tokens": answer, "ignore_eos": True, "logprobs": 0, "stream": True}
    times, cpu, pages = [time.perf_counter()], [fleet.cpu_ms()], 0
    async with http.post(f"{fleet.url}/v1/completions", json=body, headers={headers.TIMING: "1"}) as response:
        if response.status != 200:
            raise SystemExit(await response.text())
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                if event.get("choices"):
                    times.append(time.perf_counter())
                    if len(cpu) == 1:
                        cpu.append(fleet.cpu_ms())
                pages = (event.get("tandem") or {}).get("handoff_pages", pages)
    if not pages:
        raise SystemExit("the prompt was not handed over")
    after = len(times) - 2
    seconds = times[1] - times[0], (times[-1] - times[1]) / after
    return Asked(1e3 * seconds[0], 1e3 * seconds[1], cpu[1] - cpu[0], (fleet.cpu_ms() - cpu[1]) / after)


if __name__ == "__main__":
    main()
