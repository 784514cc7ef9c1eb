"""What constrained decoding adds to the time per output token: the same requests with and without, in turns.

    python benchmarks/structured_output.py --base-url=http://127.0.0.1:8000 --model=NAME [--batch=8] [--rounds=5]
        [--tokens=48] [--only="JSON schema"]

Prints, for each kind of structure, TPOT with it over TPOT without it: the median over the rounds, in each of which
every structure runs next to requests without any. All answers have as many tokens: only a JSON object may be whole
before, and then goes on with end tokens. The clock starts with the first chunk, and so does the count of tokens: of a
call, nothing is shown before its name is known. Calls are left out where the model's chat template has none; the
server's `--chat-template benchmarks/hermes.jinja` gives it one. The server should be idle otherwise. With a decode step
of 30 ms it takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import aiohttp
import orjson

_LONG = {"type": "string", "minLength": 2000}
_WORDS = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("house", "tree", "car", "boat")]
_ENTRY = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1, "maximum": 99999},
        "price": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        "kind": {"enum": _WORDS},
        "stock": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 4},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "open": {"type": "boolean"}},
            "required": ["city", "open"],
            "additionalProperties": False,
        },
    },
    "required": ["id", "price", "kind", "stock", "tags", "place"],
    "additionalProperties": False,
}
_CATALOGUE = {
    "type": "object",
    "properties": {"entries": {"type": "array", "items": _ENTRY, "minItems": 50}},
    "required": ["entries"],
    "additionalProperties": False,
}
_TEXT = {
    "type": "object",
    "properties": {"name": _LONG, "notes": {"type": "array", "items": _LONG, "minItems": 9}},
    "required": ["name", "notes"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "store", "parameters": _CATALOGUE}}
STRUCTURES: dict[str, dict[str, Any]] = {
    "JSON object": {"response_format": {"type": "json_object"}},
    "JSON schema of texts": {"structured_outputs": {"json": _TEXT}},
    "JSON schema": {"structured_outputs": {"json": _CATALOGUE}},
    "regex": {"structured_outputs": {"regex": "([a-z]{1,12} ){400}"}},
    "choice": {"structured_outputs": {"choice": [" ".join([word] * 400) for word in _WORDS[:3]]}},
    "grammar": {"structured_outputs": {"grammar": 'start: WORD (" " WORD){400}\nWORD: /[a-zA-Z]{1,10}/'}},
    "required call": {"tools": [_TOOL], "tool_choice": "required"},
}
_WITHOUT: dict[str, dict[str, Any]] = {"required call": {"tools": [_TOOL], "tool_choice": "auto"}}
"""What stands in the prompt then stands there on both sides."""


async def tpot(session: aiohttp.ClientSession, options: argparse.Namespace, extra: dict[str, Any]) -> float:
    """Mean seconds per output token after the first, of a batch of streams at once."""
    return statistics.mean(
        await asyncio.gather(*[_one(session, options, seed, extra) for seed in range(options.batch)])
    )


async def _one(session: aiohttp.ClientSession, options: argparse.Namespace, seed: int, extra: dict[str, Any]) -> float:
    came: list[tuple[int, float]] = []
    """Of each chunk, how many tokens there were then, and when."""
    async with session.post("/v1/chat/completions", json=_body(options, seed, extra)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                came.append((orjson.loads(line[6:])["usage"]["completion_tokens"], now))
    (first_tokens, first), (tokens, last) = came[0], came[-1]
    assert tokens == options.tokens > 2 * first_tokens, f"tokens came at {came}"
    return (last - first) / (tokens - first_tokens)


async def _answers(session: aiohttp.ClientSession, options: argparse.Namespace, extra: dict[str, Any]) -> bool:
    async with session.post("/v1/chat/completions", json=_body(options, 0, extra)) as response:
        return response.status == 200


def _body(options: argparse.Namespace, seed: int, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": options.model, "messages": [{"role": "user", "content": "Tell me a story about numbers."}],
        "max_tokens": options.tokens, "seed": seed, "temperature": 0.8, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}, **extra,
    }  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--only", choices=STRUCTURES, help="one of the structures; else all")
    options = parser.parse_args()
    chosen = {name: extra for name, extra in STRUCTURES.items() if options.only in (None, name)}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(options.base_url, timeout=timeout) as session:
        if "required call" in chosen and not await _answers(session, options, chosen["required call"]):
            print(f"{'required call':22} refused: the chat template of {options.model} knows no calls")
            del chosen["required call"]
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for round_number in range(options.rounds + 1):
            for name, extra in chosen.items():
                # Either comes first in every other round.
                free = _WITHOUT.get(name, {})
                sides = [free, extra] if round_number % 2 else [extra, free]
                one, other = [await tpot(session, options, side) for side in sides]
                if round_number:  # the first one compiles the grammars and fills the caches
                    pairs[name].append((one, other) if round_number % 2 else (other, one))
        for name, measured in pairs.items():
            ratios = sorted(bound / free for free, bound in measured)
            free_ms, bound_ms = (1e3 * statistics.median(side) for side in zip(*measured, strict=True))
            print(
                f"{name:22} {free_ms:6.1f} ms -> {bound_ms:6.1f} ms, ratio {statistics.median(ratios):.3f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    asyncio.run(main())
