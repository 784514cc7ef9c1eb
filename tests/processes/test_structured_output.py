"""Structured output through a gateway, a prefill and a decode process: Qwen3's real tokenizer, a model of noise."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel
from support.qwen3_model import build_tiny_qwen3
from support.service import Service, serving
from support.serving import EnginePod, Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about Paris, please, and about its weather this week."}]
PLAIN = {"enable_thinking": False}
THINK = 151667


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    districts: list[Literal[1, 2, 3]]
    capital: bool


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))
    with Fleet(folder, tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def service(fleet: Fleet) -> Iterator[Service]:
    # Few pages: sixteen answers at once preempt one another.
    small = {"kv_cache_memory": "192KiB", "max_num_seqs": 16, "max_model_len": 512, "max_num_batched_tokens": 64}
    with serving(fleet, decode=small) as made:
        yield made


@pytest.fixture(scope="module")
def whole_pod(fleet: Fleet) -> EnginePod:
    pod = fleet.pod("both")
    pod.wait_ready()
    return pod


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=service.base_url, api_key="none", max_retries=0, timeout=100) as client:
        yield client


@pytest.fixture
async def single(whole_pod: EnginePod) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{whole_pod.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        yield client


async def said(client: openai.AsyncOpenAI, *, stream: bool = False, **more: Any) -> str:
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 300, "extra_body": PLAIN} | more
    if not stream:
        answer = await client.chat.completions.create(**body)
        assert answer.choices[0].finish_reason == "stop", answer
        return answer.choices[0].message.content or ""
    pieces, finish = [], None
    async for chunk in await client.chat.completions.create(**body, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "stop"
    return "".join(pieces)


async def test_parse_into_a_pydantic_model(client: openai.AsyncOpenAI) -> None:
    for seed in range(4):
        answer = await client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=City, seed=seed, max_tokens=300, extra_body=PLAIN
        )
        assert isinstance(answer.choices[0].message.parsed, City)


SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-\\d{4}$"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["id", "tags", "size"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}


async def test_sixteen_at_once_through_the_handoff_are_as_from_one_process(
    client: openai.AsyncOpenAI, single: openai.AsyncOpenAI, service: Service
) -> None:
    decode = service.decode
    before = decode.metric(names.PREEMPTIONS)
    asked = [{"response_format": FORMAT, "seed": seed, "stream": seed % 2 == 0} for seed in range(16)]
    through_gateway = await asyncio.gather(*[said(client, **one) for one in asked])
    assert through_gateway == await asyncio.gather(*[said(single, **one) for one in asked])
    for text in through_gateway:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(through_gateway)) == 16
    assert decode.metric(names.HANDOFF_PAGES, side="received") > 0
    assert decode.metric(names.PREEMPTIONS) > before
    service.wait_idle()


async def test_every_way_to_name_a_structure(client: openai.AsyncOpenAI) -> None:
    async def under(name: str, value: Any) -> str:
        return await said(client, extra_body=PLAIN | {name: value})

    assert await under("structured_outputs", {"choice": ["yes", "no"]}) in ("yes", "no")
    assert await under("guided_choice", ["<tool_call>", "<|im_end|>"]) in ("<tool_call>", "<|im_end|>")
    assert re.fullmatch(r"\d{3}/[a-f]+", await under("structured_outputs", {"regex": r"\d{3}/[a-f]{1,9}"}))
    assert re.fullmatch(r"[xy]{5}", await under("regex", "[xy]{5}"))
    assert re.fullmatch("a{1,5}", await under("ebnf", 'root ::= "a" | "aa" | "aaa"'))
    assert json.loads(await under("structured_outputs", {"json": {"const": {"a": [1]}}})) == {"a": [1]}
    assert json.loads(await under("guided_json", json.dumps({"enum": [7]}))) == 7


async def test_n_logprobs_and_stop(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=4, logprobs=True, top_logprobs=2, response_format=FORMAT,
        max_tokens=300, extra_body=PLAIN,
    )  # fmt: skip
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
        assert "".join(item.token for item in choice.logprobs.content) == choice.message.content
        assert all(item.logprob > -100 for item in choice.logprobs.content)
    cut = await said(client, response_format=FORMAT, stop='"tags"')
    assert cut.rstrip().endswith(",")


async def test_completions_too(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt="x", max_tokens=50, extra_body={"structured_outputs": {"regex": "[a-z]{5}"}}
    )
    assert re.fullmatch("[a-z]{5}", answer.choices[0].text)


async def test_an_unfinished_thought_leaves_no_content(client: openai.AsyncOpenAI) -> None:
    """A grammar and an open thought: the answer is valid, or it is missing because the tokens ran out."""
    for opens, expected in (100, (None, "length")), (-100, ("yes", "stop")):
        answer = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=12, logit_bias={str(THINK): opens},
            extra_body={"structured_outputs": {"choice": ["yes"]}},
        )  # fmt: skip
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "frob"}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"guided_json": {"type": "array", "items": {"$ref": "#/none"}}}, "guided_json"),
    ],
)
async def test_what_cannot_be_enforced_is_refused(client: openai.AsyncOpenAI, fields: Any, param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="tiny", messages=MESSAGES, n=2, stream=stream, extra_body=PLAIN | fields
            )
        assert (refused.value.param, refused.value.code) == (param, "invalid_grammar")
        assert param in refused.value.message
