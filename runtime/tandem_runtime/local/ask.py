"""Asks a running gateway one question, as any client would, and keeps what the answer says of its own way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from rich.table import Table
from tandem_contract import headers
from tandem_contract.handoff import RequestTrace

from tandem_runtime.bench.serve.sse import SseParser
from tandem_runtime.core.errors import TandemError

WAYS = {"tcp": ", over TCP", "ipc": ", through shared memory", "nixl": ", by NIXL"}
"""By the names of `--kv-transport`."""


class NoAnswerError(TandemError):
    """The gateway refused the question, or its stream ended in an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    completion_tokens: int
    trace: RequestTrace | None


async def ask(url: str, question: str, on_text: Callable[[str], None], *, max_tokens: int = 128) -> Answer:
    """Streams the answer to `question` from the only model at `url` (scheme, host and port)."""
    text, tokens, trace = "", 0, None
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with aiohttp.ClientSession(raise_for_status=_refusal) as http:
            async with http.get(f"{url}/v1/models") as models:
                body["model"] = (await models.json())["data"][0]["id"]
            async with http.post(f"{url}/v1/chat/completions", json=body, headers={headers.TIMING: "1"}) as answer:
                events = SseParser()
                async for chunk in answer.content.iter_any():
                    for event in filter(lambda data: data != b"[DONE]", events.feed(chunk)):
                        news = _checked(json.loads(event))
                        piece = _text_of(news)
                        on_text(piece)
                        text += piece
                        tokens = (news.get("usage") or {}).get("completion_tokens", tokens)
                        if "tandem" in news:
                            trace = msgspec.convert(news["tandem"], RequestTrace)
    except aiohttp.ClientError as error:
        raise NoAnswerError(f"the gateway at {url} broke off: {error}") from error
    return Answer(text, tokens, trace)


def where_it_went(answer: Answer) -> Table:
    table = Table(title="Where it went", show_header=False, title_justify="left")
    trace = answer.trace
    if trace is None:
        table.add_row("trace", "the answer carried none")
        return table
    table.add_row("prefill pod", trace.prefill_pod or "none: the decode pod computed the prompt itself")
    table.add_row("decode pod", trace.decode_pod)
    table.add_row("prompt", f"{trace.prompt_tokens} tokens, {trace.cached_tokens} of them cached")
    moved = (
        f"{trace.handoff_pages} pages, {trace.handoff_bytes / 1024:,.0f} KiB in {trace.handoff_seconds * 1e3:.0f} ms"
    )
    table.add_row("KV moved", moved + WAYS.get(trace.handoff_transport or "", ""))
    table.add_row("answer", f"{answer.completion_tokens} tokens")
    table.add_row("TTFT", f"{trace.ttft_seconds * 1e3:.0f} ms")
    table.add_row("TPOT", f"{trace.tpot_seconds * 1e3:.1f} ms")
    return table


def _text_of(news: dict[str, Any]) -> str:
    deltas = (choice.get("delta", {}) for choice in news.get("choices", []))
    return "".join((delta.get("reasoning_content") or "") + (delta.get("content") or "") for delta in deltas)


def _checked(news: dict[str, Any]) -> dict[str, Any]:
    if "error" in news:
        raise NoAnswerError(f"the stream ended in an error: {news['error'].get('message', news['error'])}")
    return news


async def _refusal(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= 400:
        raise NoAnswerError(f"{answer.url.path} answered {answer.status}: {(await answer.text())[:300]}")
