"""A client of the completions route that speaks token ids."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import aiohttp

ANSWER_S = 60.0


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(256) for _ in range(length)]


def completion_body(prompt: list[int], *, max_tokens: int = 24, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return body | more


async def ask(base_url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The answer's JSON; raises with the server's words on an error."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(base_url + "/v1/completions", json=body, headers=headers) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return answer


async def ask_status(base_url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(base_url + "/v1/completions", json=body, headers=headers) as response,
    ):
        return response.status, await response.json()


async def texts(base_url: str, bodies: Sequence[dict[str, Any]], *, concurrency: int) -> list[str]:
    slots = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> str:
        async with slots:
            return (await ask(base_url, body))["choices"][0]["text"]

    return await asyncio.gather(*[one(body) for body in bodies])
