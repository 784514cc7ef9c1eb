"""Schemas as people write and generate them, through a gateway, a prefill and a decode process, with a model of noise.

Whatever is asked for at once, every answer that ends by itself validates. Noise rarely ends a string: hence lengths.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field
from support.qwen3_model import build_tiny_qwen3
from support.service import Service, serving
from support.serving import Fleet

pytestmark = pytest.mark.processes

MESSAGES: list[Any] = [{"role": "user", "content": "Fill in the form, please, as well as you can."}]
Short = Annotated[str, Field(max_length=6)]


class Size(Enum):
    SMALL = "klein"
    LARGE = "größe \U0001f600"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float | None = Field(default=None, gt=0, lt=100)


class Owner(BaseModel):
    """Everything that pydantic generates for one's everyday models."""

    id: uuid.UUID
    born: datetime.date
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    size: Size
    nickname: Short | None = None
    tags: list[Short] = Field(max_length=2)


TREE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 9},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    },
    "required": ["value", "children"],
    "additionalProperties": False,
}
LINKED = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
FORM = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{1,4}$"},
        "at": {"type": "string", "format": "date-time"},
        "mail": {"type": "string", "format": "email", "maxLength": 12},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "step": {"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 50},
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "nested": {
            "type": "object",
            "properties": {
                f"level{i}": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                              "additionalProperties": False}
                for i in range(5)
            },
            "required": [f"level{i}" for i in range(5)],
            "additionalProperties": False,
        },
    },
    "required": ["plate", "at", "mail", "share", "step", "name", "nested"],
    "additionalProperties": False,
}  # fmt: skip
COUNTS = {
    "type": "object",
    "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99},
    "maxProperties": 2,
}
PAIR = {"type": "array", "prefixItems": [{"enum": ["x", "ÿ", 1, None]}, {"type": ["boolean", "null"]}], "minItems": 2,
        "items": False}  # fmt: skip
SCHEMAS: dict[str, Any] = {
    "pydantic": to_strict_json_schema(Owner),
    "tree": TREE,
    "linked": LINKED,
    "form": FORM,
    "counts": COUNTS,
    "pair": PAIR,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))
    with Fleet(folder, tmp_path_factory.mktemp("fleet")) as fleet, serving(fleet, decode={"max_num_seqs": 32}) as made:
        yield made


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=service.base_url, api_key="none", max_retries=0, timeout=100) as client:
        yield client


async def answers(client: openai.AsyncOpenAI, *, stream: bool, **asked: Any) -> list[tuple[str, str | None, list[Any]]]:
    """Content, finish reason and calls of each choice."""
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400} | asked
    if stream:
        whole: Any
        try:
            async with client.chat.completions.stream(**body) as events:
                whole = await events.get_final_completion()
        except openai.LengthFinishReasonError as cut_off:
            whole = cut_off.completion
    else:
        whole = await client.chat.completions.create(**body)
    return [
        (choice.message.content or "", choice.finish_reason, choice.message.tool_calls or [])
        for choice in whole.choices
    ]


def validate(text: str, schema: Any) -> None:
    judge = jsonschema.validators.validator_for(schema)
    judge(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("thinks", [True, False])
async def test_response_formats(client: openai.AsyncOpenAI, strict: bool, thinks: bool) -> None:
    extra = {"thinking_budget": 5} if thinks else {"enable_thinking": False}
    found = await asyncio.gather(
        *[
            answers(
                client, stream=False, n=2, seed=index, extra_body=extra,
                response_format={
                    "type": "json_schema", "json_schema": {"name": name, "strict": strict, "schema": SCHEMAS[name]}
                },
            )
            for index, name in enumerate(SCHEMAS)
        ]
    )  # fmt: skip
    ended: set[str] = set()
    for name, choices in zip(SCHEMAS, found, strict=True):
        assert len(choices) == 2
        for content, finish, _ in choices:
            assert finish in ("stop", "length")
            if finish == "stop":
                validate(content, SCHEMAS[name])
                ended.add(name)
    assert ended >= SCHEMAS.keys() - {"counts"}  # whose names may be of any length


async def test_streams_cut_anywhere(client: openai.AsyncOpenAI) -> None:
    """By a stop string or for want of tokens: what is there is the beginning of what would have been."""
    asked: dict[str, Any] = {
        "extra_body": {"enable_thinking": False, "structured_outputs": {"json": FORM}},
        "temperature": 0.0,
        "stream": True,
    }

    async def said(**more: Any) -> tuple[str, str | None]:
        pieces, finish = [], None
        async for chunk in await client.chat.completions.create(model="tiny", messages=MESSAGES, **asked, **more):
            pieces.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        return "".join(pieces), finish

    whole, finish = await said(max_tokens=600)
    assert finish == "stop"
    validate(whole, FORM)
    for tokens in (1, 7, 30):
        part, finish = await said(max_tokens=tokens)
        assert finish == "length"
        assert part == whole[: len(part)] != whole
    part, finish = await said(max_tokens=600, stop='"mail"')
    assert (part, finish) == (whole[: whole.index('"mail"')], "stop")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("thinks", [True, False])
async def test_calls(client: openai.AsyncOpenAI, stream: bool, thinks: bool) -> None:
    """They must be made, so that a function need not say that it is strict."""
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}}
        for name in ("pydantic", "tree", "form", "counts")
    ]
    extra = {"thinking_budget": 5} if thinks else {"enable_thinking": False}
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "pydantic"}}]
    found = await asyncio.gather(
        *[
            answers(
                client, stream=stream, tools=tools, tool_choice=choice, seed=seed, extra_body=extra,
                parallel_tool_calls=parallel,
            )
            for choice in choices
            for seed in range(2)
            for parallel in (True, False)
        ]
    )  # fmt: skip
    whole = 0
    for content, finish, calls in (choice for answer in found for choice in answer):
        assert content == ""
        assert finish in ("tool_calls", "length")
        for call in calls if finish == "tool_calls" else calls[:-1]:
            validate(call.function.arguments, SCHEMAS[call.function.name])
            whole += 1
    assert whole >= 4


async def test_two_hundred_schemas_at_once(client: openai.AsyncOpenAI, service: Service) -> None:
    """More than the decode pod keeps without need, and far more than it runs at once."""

    async def one(index: int) -> None:
        schema = {
            "type": "object",
            "properties": {f"field{index}": {"const": index}},
            "required": [f"field{index}"],
            "additionalProperties": False,
        }
        asked = {"enable_thinking": False, "structured_outputs": {"json": schema}}
        [(content, finish, _)] = await answers(client, stream=False, max_tokens=200, seed=index, extra_body=asked)
        if finish == "stop":
            assert json.loads(content) == {f"field{index}": index}
        ended.append(finish)

    ended: list[str | None] = []
    await asyncio.gather(*[one(index) for index in range(200)])
    assert ended.count("stop") > 150
    service.wait_idle()
