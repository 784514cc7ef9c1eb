"""Streaming clients that remember what a client can see of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from tandem_contract.headers import PODS


@dataclass
class Heard:
    """Of chat completions and completions, by choice."""

    text: dict[int, str] = field(default_factory=dict)
    reasoning: dict[int, str] = field(default_factory=dict)
    calls: dict[int, list[list[str]]] = field(default_factory=dict)
    """Id, name and arguments of each call."""
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
    pods: str = ""
    """Where the stream began, as the gateway says."""

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
            for piece in delta.get("tool_calls", ()):
                self._take_call(self.calls.setdefault(index, []), piece)
            if choice["finish_reason"] is not None:
                assert index not in self.finish, "a choice ended twice"
                self.finish[index] = choice["finish_reason"]
            if choice.get("logprobs") and "tokens" in choice["logprobs"]:
                self.tokens.setdefault(index, []).extend(choice["logprobs"]["tokens"])
                self.offsets.setdefault(index, []).extend(choice["logprobs"]["text_offset"])

    def _take_call(self, calls: list[list[str]], piece: dict[str, Any]) -> None:
        if "id" in piece:
            assert piece["index"] == len(calls), "a call was announced twice, or out of order"
            calls.append([piece["id"], piece["function"]["name"], ""])
        calls[piece["index"]][2] += piece["function"]["arguments"]

    def said(self) -> tuple[Any, ...]:
        """What must be the same whatever happens to pods."""
        counts = None
        if self.usage is not None:
            counts = {name: self.usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
            counts |= self.usage["completion_tokens_details"]
        # Every answer has ids of its own.
        calls = {index: [[f"call {n}", *call[1:]] for n, call in enumerate(made)] for index, made in self.calls.items()}
        assert len({call[0] for made in self.calls.values() for call in made}) == sum(map(len, calls.values()))
        return (
            self.text,
            self.reasoning,
            calls,
            self.finish,
            self.tokens,
            self.offsets,
            counts,
            self.done,
            self.error,
        )


@dataclass
class HeardResponse:
    """Of /v1/responses."""

    events: list[dict[str, Any]] = field(default_factory=list)
    pods: str = ""

    def take(self, line: bytes) -> None:
        assert not line.startswith(b":"), "an internal comment reached the client"
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert event.get("sequence_number") == len(self.events), "an event was doubled, or is missing"
            self.events.append(event)

    @property
    def deltas(self) -> int:
        return sum("delta" in event for event in self.events)

    @property
    def items(self) -> list[str]:
        """Kinds of the items that have begun."""
        return [event["item"]["type"] for event in self.events if event["type"] == "response.output_item.added"]

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "response.completed"

    def said(self) -> list[dict[str, Any]]:
        """The events, with deltas that follow one another as one, and without what may differ."""
        told: list[dict[str, Any]] = []
        for event in self.events:
            event = {name: value for name, value in event.items() if name != "sequence_number"}
            if "delta" in event and told and told[-1]["type"] == event["type"]:
                event["delta"] = told.pop()["delta"] + event["delta"]
            if "response" in event:
                event["response"] = event["response"] | {"created_at": 0, "completed_at": 0}
                if event["response"]["usage"] is not None:
                    event["response"]["usage"] |= {"input_tokens_details": None}  # the prompt was seen before
            told.append(event)
        return numbered(told, {})


def numbered(value: Any, ids: dict[str, str]) -> Any:
    """With the ids of an answer, which are its own, in the order in which they come."""
    if isinstance(value, list):
        return [numbered(item, ids) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: ids.setdefault(item, f"id {len(ids)}") if name in ("id", "item_id", "call_id") else numbered(item, ids)
        for name, item in value.items()
    }


Hearer = TypeVar("Hearer", Heard, HeardResponse)


async def hear(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    hearer: Hearer,
    headers: dict[str, str] | None = None,
) -> Hearer:
    """`hearer` may be looked at meanwhile."""
    async with session.post(url, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        hearer.pods = response.headers.get(PODS, "")
        async for line in response.content:
            hearer.take(line)
    return hearer


async def listen(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], *, headers: dict[str, str] | None = None
) -> Heard:
    return await hear(session, url + "/v1/completions", body, Heard(), headers)
