from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_gateway.errors import BadRequest
from tandem_gateway.prefix import BLOCK_BYTES, MAX_BLOCKS, SentBlocks, block_hashes
from tandem_gateway.prompt import Prompt, parse

CHAT = "/v1/chat/completions"


def chat(*messages: Mapping[str, object], **fields: object) -> Prompt:
    return parse(CHAT, json.dumps({"model": "m", "messages": messages, **fields}).encode())


def shared(one: Prompt, other: Prompt) -> int:
    pod = SentBlocks(10_000)
    pod.add(one.blocks)
    return pod.known(other.blocks)


SYSTEM = {"role": "system", "content": "s" * 4 * BLOCK_BYTES}


def test_equal_beginnings_have_equal_hashes_and_only_those() -> None:
    text = bytes(range(256)) * 8
    one, other = block_hashes(b"m", text), block_hashes(b"m", text[:1024] + b"x" + text[1025:])
    assert len(one) == 8
    assert [a == b for a, b in zip(one, other, strict=True)] == [True] * 4 + [False] * 4
    assert not set(one) & set(block_hashes(b"other model", text))
    assert len(set(block_hashes(b"m", b"x" * 4096))) == 16, "equal blocks at different places are different"


def test_only_so_much_of_a_prompt_is_looked_at() -> None:
    assert len(block_hashes(b"", b"x" * BLOCK_BYTES * (MAX_BLOCKS + 5))) == MAX_BLOCKS


def test_a_conversation_continues_its_own_beginning() -> None:
    first = chat(SYSTEM, {"role": "user", "content": "a"})
    second = chat(SYSTEM, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 600})
    assert shared(first, second) == len(first.blocks) == 4
    assert len(second.blocks) > 4


def test_spacing_and_key_order_do_not_matter_but_tools_and_model_do() -> None:
    base = chat(SYSTEM)
    spaced = json.dumps({"messages": [dict(reversed(SYSTEM.items()))], "model": "m"}, indent=3).encode()
    assert parse(CHAT, spaced).blocks == base.blocks
    assert shared(base, chat(SYSTEM, model="n")) == 0
    assert shared(base, chat(SYSTEM, tools=[{"type": "function"}])) == 0


def test_a_response_continues_its_own_beginning() -> None:
    def response(input: object, **fields: object) -> Prompt:
        return parse("/v1/responses", json.dumps({"model": "m", "input": input, **fields}).encode())

    question = {"role": "user", "content": "q" * 4 * BLOCK_BYTES}
    first = response(question["content"])
    assert shared(first, response([question, {"type": "message", "role": "assistant", "content": "a"}])) >= 4
    assert shared(first, response(question["content"], instructions="Be brief.")) == 0


@pytest.mark.parametrize("prompt", ["x" * 1000, ["x" * 1000], list(range(1000)), [list(range(1000))]])
def test_every_kind_of_completion_prompt_has_blocks(prompt: object) -> None:
    parsed = parse("/v1/completions", json.dumps({"model": "m", "prompt": prompt}).encode())
    assert len(parsed.blocks) >= 3
    assert parsed.model == "m"
    assert parsed.tokens > 200


@given(st.binary(max_size=200))
def test_any_body_is_a_prompt_or_a_bad_request(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert parse(CHAT, body).tokens <= len(body)


@given(
    prompts=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=30),
    capacity=st.integers(1, 20),
)
def test_what_is_known_of_a_prompt_is_a_beginning_of_it(prompts: list[tuple[int, int]], capacity: int) -> None:
    """The LRU evicts ends before beginnings, so that `known` may search instead of walk."""
    texts = {family: block_hashes(str(family).encode(), b"x" * BLOCK_BYTES * 12) for family in range(4)}
    pod = SentBlocks(capacity)
    for family, length in prompts:
        pod.add(texts[family][:length])
        assert len(pod) <= capacity
        assert pod.known(texts[family][:length]) == min(length, capacity)
        for hashes in texts.values():
            known = pod.known(hashes)
            assert [block in pod._blocks for block in hashes] == [True] * known + [False] * (12 - known)
