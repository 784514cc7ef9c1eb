"""A streaming client that remembers what a client can see of a stream, by choice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Heard:
    text: dict[int, str] = field(default_factory=dict)
    reasoning: dict[int, str] = field(default_factory=dict)
    roles: dict[int, int] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[Any]] = field(default_factory=dict)
    """Of logprobs."""
    offsets: dict[int, list[int]] = field(default_factory=dict)
    usage: Any = None
    trace: Any = None
    heads: set[tuple[str, int, str]] = field(default_factory=set)
    """id, created, model of the chunks."""
    done: int = 0
    error: Any = None
    chunks: int = 0

    def take(self, line: bytes) -> None:
        assert not line.startswith(b":"), "an internal comment reached the client"
        if not line.startswith(b"data: "):
            return
        if line.strip() == b"data: [DONE]":
            self.done += 1
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            self.error = chunk["error"]
            return
        self.chunks += 1
        self.heads.add((chunk["id"], chunk["created"], chunk["model"]))
        self.usage = chunk.get("usage") or self.usage
        self.trace = chunk.get("tandem") or self.trace
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice.get("delta", {})
            self.roles[index] = self.roles.get(index, 0) + ("role" in delta)
            self.text[index] = self.text.get(index, "") + (choice.get("text") or delta.get("content") or "")
            self.reasoning[index] = self.reasoning.get(index, "") + (delta.get("reasoning_content") or "")
            if choice["finish_reason"] is not None:
                assert index not in self.finish, "a choice ended twice"
                self.finish[index] = choice["finish_reason"]
            if choice.get("logprobs") and "tokens" in choice["logprobs"]:
                self.tokens.setdefault(index, []).extend(choice["logprobs"]["tokens"])
                self.offsets.setdefault(index, []).extend(choice["logprobs"]["text_offset"])

    def said(self) -> tuple[Any, ...]:
        """What must be the same whatever happens to pods."""
        counts = None
        if self.usage is not None:
            counts = {name: self.usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return self.text, self.reasoning, self.finish, self.tokens, self.offsets, counts, self.done, self.error


async def listen(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], *, headers: dict[str, str] | None = None
) -> Heard:
    heard = Heard()
    async with session.post(url + "/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            heard.take(line)
    return heard
