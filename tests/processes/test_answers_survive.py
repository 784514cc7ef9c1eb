"""A decode pod is killed while answers of every shape are in the middle: in a call, a structure, a thought."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from processes.streaming import Heard, HeardResponse, hear
from support.qwen3_model import WIDE, build_tiny_qwen3
from support.service import Service, serving
from support.serving import Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

THINK, CLOSE_THINK, TOOL_CALL = "151667", "151668", "151657"
NUMBERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "numbers": {
            "type": "array",
            "items": {"type": "integer", "minimum": 100, "maximum": 999},
            "minItems": 25,
            "maxItems": 25,
        }
    },
    "required": ["numbers"],
    "additionalProperties": False,
}
"""Some hundreds of tokens, as a model of noise likes white space."""
FUNCTION = {"name": "count", "parameters": NUMBERS, "strict": True}
CHAT_TOOLS = {"tools": [{"type": "function", "function": FUNCTION}], "parallel_tool_calls": False}
TOOLS = {"tools": [{"type": "function"} | FUNCTION], "parallel_tool_calls": False}
SCHEMA = {"name": "count", "schema": NUMBERS, "strict": True}
PLAIN = {"enable_thinking": False}
THOUGHT = {"logit_bias": {THINK: 100, CLOSE_THINK: -100}, "repetition_penalty": 10, "thinking_budget": 100}
"""The model opens a thought at once, and does not open it again and again."""

Inside = Callable[[Any], bool]


def in_call(heard: Heard) -> bool:
    return bool(heard.calls) and len(heard.calls[0][0][2]) > 30


def in_text(heard: Heard) -> bool:
    return len(heard.text.get(0, "")) > 30


def in_thought(heard: Heard) -> bool:
    return len(heard.reasoning.get(0, "")) > 30 and not heard.text.get(0) and not heard.calls


def in_item(kind: str) -> Inside:
    return lambda heard: heard.items[-1:] == [kind] and heard.deltas > 10


CHATS: dict[str, tuple[dict[str, Any], Inside]] = {
    "a call": (PLAIN | CHAT_TOOLS | {"tool_choice": "required"}, in_call),
    "a strict call by choice": (PLAIN | CHAT_TOOLS | {"logit_bias": {TOOL_CALL: 100}}, in_call),
    "a schema": (PLAIN | {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, in_text),
    "a grammar": (PLAIN | {"structured_outputs": {"grammar": 'start: (/[a-z]{2}/ " "){90}'}}, in_text),
    "a thought": (THOUGHT | {"max_tokens": 130}, in_thought),
    "a thought before a schema": (THOUGHT | {"structured_outputs": {"json": NUMBERS}}, in_thought),
    "a thought before a call": (THOUGHT | CHAT_TOOLS | {"tool_choice": "required"}, in_thought),
}
RESPONSES: dict[str, tuple[dict[str, Any], Inside]] = {
    "text": (PLAIN | {"text": {"format": {"type": "json_schema"} | SCHEMA}}, in_item("message")),
    "a call": (PLAIN | TOOLS | {"tool_choice": "required"}, in_item("function_call")),
    "a thought before a call": (
        THOUGHT | TOOLS | {"tool_choice": {"type": "function", "name": "count"}},
        in_item("reasoning"),
    ),
}
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "seeded": {"temperature": 1.0, "seed": 7}}


class Stream:
    """One request, which can be made again."""

    def __init__(self, path: str, name: str, body: dict[str, Any], inside: Inside) -> None:
        self.name = name
        self._path = path
        self._body = {"model": "tiny", "stream": True} | body
        self._inside = inside
        self.heard: Any = None

    @property
    def inside(self) -> bool:
        return self.heard is not None and self._inside(self.heard)

    @property
    def ended(self) -> bool:
        return bool(self.heard.ended if isinstance(self.heard, HeardResponse) else self.heard.finish)

    async def run(self, session: aiohttp.ClientSession, url: str) -> Any:
        self.heard = HeardResponse() if self._path == "/v1/responses" else Heard()
        await hear(session, url + self._path, self._body, self.heard)
        return self.heard.said()


def streams() -> list[Stream]:
    messages = {"messages": [{"role": "user", "content": "Count, please."}], "stream_options": {"include_usage": True}}
    made = []
    for sampling, fields in SAMPLINGS.items():
        for name, (body, inside) in CHATS.items():
            made.append(Stream("/v1/chat/completions", f"{name} {sampling}", messages | body | fields, inside))
        for name, (body, inside) in RESPONSES.items():
            asked = {"input": "Count, please."} | body | fields
            made.append(Stream("/v1/responses", f"response {name} {sampling}", asked, inside))
    return made


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"), WIDE)
    bf16 = {"dtype": "bfloat16"}
    # The first prompts are computed where they are answered, so that all streams begin together.
    decode = bf16 | {"max_num_seqs": 32, "local_prefill_max_tokens": 200}
    with (
        Fleet(folder, tmp_path_factory.mktemp("fleet")) as fleet,
        serving(fleet, decodes=2, prefill=bf16, decode=decode, resume_timeout=120.0, status_interval=0.1) as made,
    ):
        yield made


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


async def test_answers_are_as_if_their_pod_had_not_been_killed(service: Service) -> None:
    gateway, (first, second) = service.gateway, service.decodes
    second.kill()  # until the first one is: so all streams are at the first
    await until(lambda: gateway.metric(names.GATEWAY_PODS, role="decode", state="ready") == 1)
    asked = streams()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        undisturbed = await asyncio.gather(*[stream.run(session, gateway.url) for stream in asked])
        hearing = asyncio.gather(*[stream.run(session, gateway.url) for stream in asked])
        await until(lambda: all(stream.inside for stream in asked) or hearing.done())
        assert not [stream.name for stream in asked if stream.ended or not stream.inside]
        first.kill()
        service.decodes.remove(first)
        service.again(second)
        disturbed = await hearing
    for stream, here, there in zip(asked, undisturbed, disturbed, strict=True):
        assert there == here, stream.name
    assert gateway.metric(names.GATEWAY_STREAM_RESUMES) == len(asked)
    assert gateway.metric(names.GATEWAY_STREAMS_LOST) == 0
    service.wait_idle()
