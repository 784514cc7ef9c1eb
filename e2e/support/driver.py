"""The traffic driver: runs in a pod of its own, asks without pause and says of every answer whether it was right.

Usage: driver.py URL CASES.json; the API key is in $API_KEY. One JSON line a request on stdout: which worker asked, when
it began and ended (Unix seconds), what went wrong (null: nothing) and how often a connection had to be made anew.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

CONNECT_S, SILENCE_S, PAUSE_S = 2.0, 45.0, 0.1
CONNECTED_S = 120.0
"""Patience of a client without a connection. Until a Service has noticed that one of its pods is gone, a share of all
connections goes there, any number of them in a row."""

Case = dict[str, Any]
"""`body` of the request, `text` of the right answer."""


async def main(url: str, cases: list[Case]) -> None:
    order = itertools.cycle(cases)
    # One client keeps its connection, as SDKs do; the other makes one for each request.
    await asyncio.gather(worker(0, url, order, keep=True), worker(1, url, order, keep=False))


async def worker(number: int, url: str, cases: Iterator[Case], *, keep: bool) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=SILENCE_S)
    headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
    connector = aiohttp.TCPConnector(force_close=not keep, use_dns_cache=False)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers, connector=connector) as session:
        while True:
            case, began = next(cases), time.time()
            reconnects, problem = await attempt(session, case)
            line = {
                "worker": number,
                "began": began,
                "ended": time.time(),
                "problem": problem,
                "reconnects": reconnects,
            }
            print(json.dumps(line), flush=True)
            await asyncio.sleep(PAUSE_S)


async def attempt(session: aiohttp.ClientSession, case: Case) -> tuple[int, str | None]:
    """Reconnects and the problem. Only what happened before any answer is tried again, like the OpenAI SDK does."""
    reconnects, until = 0, time.monotonic() + CONNECTED_S
    while True:
        try:
            answer = await session.post("/v1/completions", json=case["body"])
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            if time.monotonic() > until:
                return reconnects, f"no connection: {type(error).__name__}: {error}"
            reconnects += 1
            await asyncio.sleep(0.2)
            continue
        async with answer:
            return reconnects, await check(answer, case["text"])


async def check(answer: aiohttp.ClientResponse, wanted: str) -> str | None:
    if answer.status != 200:
        return f"HTTP {answer.status}: {(await answer.text())[:300]}"
    text, finished, done = "", False, False
    try:
        async for line in answer.content:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif data.startswith("{"):
                event = json.loads(data)
                if "error" in event:
                    return f"error in the stream: {event['error']}"[:300]
                for choice in event["choices"]:
                    text += choice["text"]
                    finished |= choice["finish_reason"] is not None
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"broken off after {len(text)} characters: {type(error).__name__}: {error}"
    if not (finished and done):
        return f"ended without an end after {len(text)} characters"
    # Of a character that the answer breaks off in, clients see nothing.
    wanted = wanted.rstrip("\ufffd")
    return None if text.rstrip("\ufffd") == wanted else f"wrong: {text!r}, not {wanted!r}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
