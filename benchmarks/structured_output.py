"""What constrained decoding adds to the time per output token: the same requests with and without, in turns.

    python benchmarks/structured_output.py --base-url=http://127.0.0.1:8000 --model=NAME [--batch=8] [--rounds=6]
        [--tokens=128] [--only="JSON schema"]

Prints, for each kind of structure, the median over the rounds of TPOT with it over TPOT without it. The server should
be idle otherwise; noise of the machine hits both sides of a pair.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import aiohttp

_TEXT = {"type": "string", "minLength": 2000}
STRUCTURES: dict[str, dict[str, Any]] = {
    "JSON schema": {
        "structured_outputs": {
            "json": {
                "type": "object",
                "properties": {"name": _TEXT, "notes": {"type": "array", "items": _TEXT, "minItems": 9}},
                "required": ["name", "notes"],
                "additionalProperties": False,
            }
        }
    },
    "list of numbers": {
        "structured_outputs": {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 500}}
    },
    "regex": {"structured_outputs": {"regex": "([a-z]{1,12} ){200}"}},
    "grammar": {"structured_outputs": {"grammar": 'start: WORD (" " WORD){400}\nWORD: /[a-zA-Z]{1,10}/'}},
}


async def tpot(session: aiohttp.ClientSession, options: argparse.Namespace, extra: dict[str, Any]) -> float:
    """Mean seconds per output token after the first, of a batch of streams at once."""
    return statistics.mean(
        await asyncio.gather(*[_one(session, options, seed, extra) for seed in range(options.batch)])
    )


async def _one(session: aiohttp.ClientSession, options: argparse.Namespace, seed: int, extra: dict[str, Any]) -> float:
    body = {
        "model": options.model, "prompt": "Tell me a story about numbers.", "max_tokens": options.tokens, "seed": seed,
        "temperature": 0.8, "stream": True, "ignore_eos": True, **extra,
    }  # fmt: skip
    first = last = 0.0
    async with session.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                last = time.perf_counter()
                first = first or last
    return (last - first) / (options.tokens - 1)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--only", choices=STRUCTURES, help="one of the structures; else all")
    options = parser.parse_args()
    chosen = {name: extra for name, extra in STRUCTURES.items() if options.only in (None, name)}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(options.base_url, timeout=timeout) as session:
        for name, extra in chosen.items():
            await tpot(session, options, extra)  # compiles the grammar, fills the caches
            pairs = []
            for _ in range(options.rounds):
                free = await tpot(session, options, {})
                pairs.append((free, await tpot(session, options, extra)))
            ratio = statistics.median(bound / free for free, bound in pairs)
            free_ms, bound_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"{name:16} {free_ms:6.1f} ms -> {bound_ms:6.1f} ms, median ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
