"""The traffic driver: runs in a pod of its own, asks without pause and says of every answer whether it was right.

Usage: driver.py URL CASES.json; the API key is in $API_KEY. One JSON line a request on stdout: when it began and ended
(Unix seconds), what went wrong (null: nothing) and how often a connection had to be made anew.
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

CONNECT_S, SILENCE_S, CONNECT_ATTEMPTS = 2.0, 30.0, 4
PAUSE_S = 0.1

Case = dict[str, Any]
"""`body` of the request, `text` of the right answer."""


async def main(url: str, cases: list[Case]) -> None:
    order = itertools.cycle(cases)
    # One client keeps its connection, as SDKs do; the other makes one for each request.
    await asyncio.gather(worker(url, order, keep=True), worker(url, order, keep=False))


async def worker(url: str, cases: Iterator[Case], *, keep: bool) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=SILENCE_S)
    headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
    connector = aiohttp.TCPConnector(force_close=not keep, use_dns_cache=False)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers, connector=connector) as session:
        while True:
            case, began = next(cases), time.time()
            reconnects, problem = await attempt(session, case)
            line = {"began": began, "ended": time.time(), "problem": problem, "reconnects": reconnects}
            print(json.dumps(line), flush=True)
            await asyncio.sleep(PAUSE_S)


async def attempt(session: aiohttp.ClientSession, case: Case) -> tuple[int, str | None]:
    """Reconnects and the problem. Only what happened before any answer is tried again, like the OpenAI SDK does."""
    for reconnects in range(CONNECT_ATTEMPTS):
        try:
            answer = await session.post("/v1/completions", json=case["body"])
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            failure = f"{type(error).__name__}: {error}"
            await asyncio.sleep(0.2)
            continue
        async with answer:
            return reconnects, await check(answer, case["text"])
    return CONNECT_ATTEMPTS, f"no connection: {failure}"


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
