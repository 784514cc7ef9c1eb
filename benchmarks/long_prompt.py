"""What one very long prompt does to the others: inter-token latency of running streams, and of the server's event loop.

    python benchmarks/long_prompt.py --base-url http://127.0.0.1:8000 --model NAME --characters 400000

Starts streams that go on until the long prompt is answered, measures them alone, then sends the prompt as text. Prints
the gaps between tokens (ms) before and meanwhile, the answers of /livez (ms; the event loop of the API process or the
gateway), and the long prompt's own time to its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PROBE_INTERVAL_S = 0.01


@dataclass
class Gaps:
    """(when it ended, seconds) of each wait."""

    waits: list[tuple[float, float]] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[float]:
        return [seconds for at, seconds in self.waits if start <= at < end]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--characters", type=int, default=400_000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--stream-tokens", type=int, default=20_000, help="more than the streams will get to")
    parser.add_argument("--alone", type=float, default=5.0, help="seconds of streams before the prompt is sent")
    args = parser.parse_args()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(args.base_url, timeout=timeout, read_bufsize=1 << 20) as session:
        tokens, loop = Gaps(), Gaps()
        tasks = [asyncio.create_task(follow(session, args, n, tokens)) for n in range(args.streams)]
        tasks.append(asyncio.create_task(probe(session, loop)))
        await asyncio.sleep(args.alone)
        sent = time.perf_counter()
        usage = await long_prompt(session, args)
        answered = time.perf_counter()
        for task in tasks:
            task.cancel()
        failures = [one for one in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(one, Exception)]
    print(f"prompt of {usage['prompt_tokens']} tokens: first token after {answered - sent:.2f} s; failed: {failures}")
    print(f"{'ms':28}{'count':>8}{'median':>9}{'p99':>9}{'max':>9}")
    show("tokens, streams alone", tokens.between(sent - args.alone / 2, sent))
    show("tokens, beside the prompt", tokens.between(sent, answered))
    show("event loop, streams alone", loop.between(sent - args.alone / 2, sent))
    show("event loop, beside it", loop.between(sent, answered))


async def follow(session: aiohttp.ClientSession, args: argparse.Namespace, number: int, gaps: Gaps) -> None:
    body = {"model": args.model, "prompt": f"{number}: once upon a time", "max_tokens": args.stream_tokens}
    last = None
    async for _ in events(session, body | {"ignore_eos": True, "temperature": 1.0}):
        now = time.perf_counter()
        if last is not None:
            gaps.waits.append((now, now - last))
        last = now


async def probe(session: aiohttp.ClientSession, gaps: Gaps) -> None:
    while True:
        started = time.perf_counter()
        async with session.get("/livez") as response:
            await response.read()
        now = time.perf_counter()
        gaps.waits.append((now, now - started))
        await asyncio.sleep(PROBE_INTERVAL_S)


async def long_prompt(session: aiohttp.ClientSession, args: argparse.Namespace) -> dict[str, Any]:
    text = " ".join(str(number) for number in range(args.characters))[: args.characters]
    body = {"model": args.model, "prompt": text, "max_tokens": 1, "stream_options": {"include_usage": True}}
    usage: dict[str, Any] = {}
    async for event in events(session, body):
        usage = event["usage"] or usage
    return usage


async def events(session: aiohttp.ClientSession, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with session.post("/v1/completions", json=body | {"stream": True}) as response:
        if response.status != 200:
            raise SystemExit(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def show(name: str, seconds: list[float]) -> None:
    if len(seconds) < 2:
        print(f"{name:28}{len(seconds):>8}")
        return
    ms = sorted(1000 * value for value in seconds)
    p99 = statistics.quantiles(ms, n=100, method="inclusive")[98]
    print(f"{name:28}{len(ms):>8}{statistics.median(ms):>9.1f}{p99:>9.1f}{ms[-1]:>9.1f}")


if __name__ == "__main__":
    asyncio.run(main())
