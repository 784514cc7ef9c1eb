"""What one very long prompt does to the others: inter-token latency of running streams, beside it and without it.

    python benchmarks/long_prompt.py [--prompts 32000 100000] [--setups default 128 apart]
    python benchmarks/long_prompt.py --base-url http://127.0.0.1:8000 --model NAME

Without `--base-url` it starts servers of a small model with random weights and 128K of context (YaRN over 32K), one
after the other: one process with the default `--max-prefill-tokens-with-decodes`, one process with another value of it,
and gateway, prefill pod and decode pod. In each, streams run; they are measured alone, then while a prompt is computed.
On two cores that takes about four minutes. Attention to 100,000 tokens takes most of it, as it does with real models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CONTEXT = 131_072
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": 8192,
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
    "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": True, "eos_token_id": 0,
}  # fmt: skip
SERVE = (
    *("--load-format", "dummy", "--rope-scaling", "yarn", "--max-model-len", str(CONTEXT)),
    *("--kv-cache-memory", "256MiB", "--max-num-seqs", "8"),
)
START_S = 90.0


@dataclass
class Waits:
    """(when it ended, seconds) of each gap between two tokens of a stream."""

    seen: list[tuple[float, float]] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[float]:
        """Milliseconds, sorted."""
        return sorted(1000 * seconds for at, seconds in self.seen if start <= at < end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="a server that runs already, instead of starting some")
    parser.add_argument("--model", default="long", help="its model's name")
    parser.add_argument("--setups", nargs="+", default=["default", "128", "apart"], help="apart, default, or a number")
    parser.add_argument("--prompts", nargs="+", type=int, default=[32_000, 100_000], help="tokens of each long prompt")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--alone", type=float, default=4.0, help="seconds of streams before each prompt")
    args = parser.parse_args()
    print(f"{'':10}{'prompt':>9}{'first':>10}{'ITL alone, ms':>21}{'ITL beside it, ms':>31}{'beside / alone':>17}")
    print(f"{'':10}{'tokens':>9}{'token, s':>10}" + 2 * f"{'p50':>9}{'p99':>9}{'max':>9}" + f"{'p50':>9}{'p99':>8}")
    if args.base_url is not None:
        asyncio.run(measure(args.base_url, args, "given"))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        for setup in args.setups:
            with serving(setup, folder) as url:
                asyncio.run(measure(url, args, setup))


@contextmanager
def serving(setup: str, folder: str) -> Iterator[str]:
    port, metrics_port = free_port(), free_port()
    ports = ["--port", str(port), "--metrics-port", str(metrics_port)]
    if setup == "apart":
        argv = ["up", "--model", folder, *ports, "--", *SERVE, "--served-model-name", "long", "--cpu-threads", "1"]
    else:
        cap = [] if setup == "default" else ["--max-prefill-tokens-with-decodes", setup]
        argv = ["serve", "--model", folder, "--host", "127.0.0.1", *ports, *SERVE, "--served-model-name", "long", *cap]
    with (Path(folder) / f"{setup}.log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tandem_cli.main", *argv], stdout=log, stderr=log, start_new_session=True
        )
        try:
            if not asyncio.run(ready(f"http://127.0.0.1:{metrics_port}/readyz", process)):
                raise SystemExit(f"the server did not start:\n{Path(log.name).read_text()[-3000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


async def ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return True
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    return False


async def measure(url: str, args: argparse.Namespace, name: str) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(url, timeout=timeout, read_bufsize=1 << 20) as session:
        waits = Waits()
        streams = [asyncio.create_task(follow(session, args, number, waits)) for number in range(args.streams)]
        for tokens in args.prompts:
            await asyncio.sleep(args.alone)
            # The first wait of a stream, and what follows the prompt before, are nobody's steady state.
            sent = time.perf_counter()
            await long_prompt(session, args, tokens)
            answered = time.perf_counter()
            failed = [str(stream.exception()) for stream in streams if stream.done()]
            if failed:
                raise SystemExit(f"streams ended: {failed}")
            show(
                name, tokens, answered - sent, waits.between(sent - args.alone / 2, sent), waits.between(sent, answered)
            )
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def follow(session: aiohttp.ClientSession, args: argparse.Namespace, number: int, waits: Waits) -> None:
    # With logprobs each token has an event, also where it is part of a character.
    body = {"model": args.model, "prompt": f"{number}: once upon a time", "max_tokens": 30_000, "logprobs": 0}
    last = None
    async for _ in events(session, body | {"ignore_eos": True, "temperature": 1.0, "seed": number}):
        now = time.perf_counter()
        if last is not None:
            waits.seen.append((now, now - last))
        last = now


async def long_prompt(session: aiohttp.ClientSession, args: argparse.Namespace, tokens: int) -> None:
    rng = random.Random(tokens)
    prompt = [rng.randrange(1, 256) for _ in range(tokens)]
    async for event in events(session, {"model": args.model, "prompt": prompt, "max_tokens": 1, "ignore_eos": True}):
        if "error" in event:
            raise SystemExit(event["error"])


async def events(session: aiohttp.ClientSession, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with session.post("/v1/completions", json=body | {"stream": True}) as response:
        if response.status != 200:
            raise SystemExit(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def show(name: str, tokens: int, seconds: float, alone: list[float], beside: list[float]) -> None:
    if min(len(alone), len(beside)) < 2:
        raise SystemExit(f"{name}, {tokens} tokens: {len(alone)} waits alone and {len(beside)} beside say nothing")
    before, meanwhile = figures(alone), figures(beside)
    times = "".join(f"{value:>9.1f}" for value in before + meanwhile)
    ratios = f"{meanwhile[0] / before[0]:>9.1f}{meanwhile[1] / before[1]:>8.1f}"
    print(f"{name:10}{tokens:>9}{seconds:>10.1f}{times}{ratios}", flush=True)


def figures(ms: list[float]) -> tuple[float, float, float]:
    """p50, p99, max."""
    return statistics.median(ms), statistics.quantiles(ms, n=100, method="inclusive")[98], ms[-1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
