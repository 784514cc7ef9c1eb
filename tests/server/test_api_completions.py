from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import aiohttp
import openai
import pytest
from support.api_server import Server


async def test_whole_and_streamed(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="Say", max_tokens=5)
    server_text = server.tokenizer.decode(server.engine.reply(server.engine.requests[0])[:5])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (server_text, "length")
    stream = await client.completions.create(model="tiny", prompt="Say", max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == server_text
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_sixteen_tokens_by_default(server: Server, client: openai.AsyncOpenAI) -> None:
    await client.completions.create(model="tiny", prompt="Say")
    assert server.engine.requests[0].sampling.max_tokens == 16


async def test_every_kind_of_prompt(server: Server, client: openai.AsyncOpenAI) -> None:
    ids = server.tokenizer.encode("a b", add_special_tokens=True)
    prompts: list[Any] = ["a b", ["a b", "a b"], ids, [ids, ids]]
    for prompt in prompts:
        answer = await client.completions.create(model="tiny", prompt=prompt, n=2)
        expected = 4 if prompt in (prompts[1], prompts[3]) else 2
        assert [choice.index for choice in answer.choices] == list(range(expected))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids) * expected // 2
    assert {tuple(request.prompt_token_ids) for request in server.engine.requests} == {tuple(ids)}


async def test_prompts_keep_their_order(server: Server, client: openai.AsyncOpenAI) -> None:
    server.engine.reply = lambda request: request.prompt_token_ids
    answer = await client.completions.create(model="tiny", prompt=["one", "two", "three"], echo=True)
    assert [choice.text for choice in answer.choices] == ["oneone", "twotwo", "threethree"]


async def test_echo_with_logprobs(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="fox jumps", echo=True, logprobs=1, max_tokens=4)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    unknown = [logprob is None for logprob in logprobs.token_logprobs]
    assert unknown == [True] + [False] * (len(logprobs.tokens) - 1)
    assert server.engine.requests[0].sampling.prompt_logprobs == 1


async def test_offsets_are_characters_of_the_text(server: Server, client: openai.AsyncOpenAI) -> None:
    """Symptom: after a character of several tokens, `text_offset` of an echoed prompt ran ahead of its text, one
    for each token. Cause: each token was taken for as many characters as it has by itself."""
    server.say("café 你好 🙂, done")
    for prompt in ("naïve 🙂你好 fox", server.tokenizer.encode("<|im_start|>🙂 fox", add_special_tokens=False)):
        options: Any = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 40, "n": 2}
        whole = await client.completions.create(**options)
        streamed = [chunk async for chunk in await client.completions.create(**options, stream=True)]
        for index, choice in enumerate(whole.choices):
            assert choice.text.endswith("fox" + "café 你好 🙂, done")
            parts = [chunk.choices[0] for chunk in streamed if chunk.choices[0].index == index]
            tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens or []]
            offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset or []]
            assert choice.logprobs is not None
            assert (choice.logprobs.tokens, choice.logprobs.text_offset) == (tokens, offsets)
            assert "bytes:" in "".join(tokens)
            assert offsets == sorted(offsets)
            for token, offset in zip(tokens, offsets, strict=True):
                assert token.startswith("bytes:") or choice.text[offset:].startswith(token)


async def test_parts_of_characters_are_told_apart(server: Server, client: openai.AsyncOpenAI) -> None:
    """As OpenAI spells them; all were U+FFFD, so that alternatives overwrote one another."""
    parts = [token_id for token_id in range(300) if server.tokenizer.decode([token_id]) == "\ufffd"]
    first = next(one for one in parts if one + 1 in parts)
    server.say_tokens([first])
    answer = await client.completions.create(model="tiny", prompt="Say", logprobs=2, max_tokens=1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.top_logprobs is not None
    [top] = answer.choices[0].logprobs.top_logprobs
    assert len(top) == 2
    assert all(token.startswith("bytes:\\x") for token in top)


async def test_scoring_a_prompt_generates_nothing(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="fox jumps", echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("fox jumps", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == "fox jumps"


async def test_streamed_echo_comes_first(server: Server, client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt="fox", echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].text == "fox"
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "foxHello, world."
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("prompt", ["naïve 你好", "<|im_end|>x"])
async def test_tokenize_and_back(server: Server, client: openai.AsyncOpenAI, prompt: str) -> None:
    base = client.with_options(base_url=server.url)
    tokenized: Any = await base.post(
        "/tokenize", body={"model": "tiny", "prompt": prompt, "return_token_strs": True}, cast_to=object
    )
    assert tokenized["count"] == len(tokenized["tokens"]) == len(tokenized["token_strs"])
    assert tokenized["max_model_len"] == 256
    back: Any = await base.post("/detokenize", body={"tokens": tokenized["tokens"]}, cast_to=object)
    assert back == {"prompt": prompt}


async def test_tokenize_messages_as_chat_sees_them(server: Server, client: openai.AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Say hello."}]
    base = client.with_options(base_url=server.url)
    tokenized: Any = await base.post("/tokenize", body={"messages": messages}, cast_to=object)
    await client.chat.completions.create(model="tiny", messages=messages)
    assert tokenized["tokens"] == server.engine.requests[0].prompt_token_ids


async def test_a_long_prompt_does_not_hold_up_others(server: Server, http: aiohttp.ClientSession) -> None:
    tokenizing = asyncio.create_task(http.post("/tokenize", json={"prompt": "the quick brown fox " * 50_000}))
    await asyncio.sleep(0)
    for _ in range(20):
        async with http.get("/livez") as response:
            assert response.status == 200
    assert not tokenizing.done()
    async with await tokenizing as response:
        assert response.status == 200


async def longest_wait_meanwhile(http: aiohttp.ClientSession, path: str, body: object) -> tuple[float, Any]:
    """Seconds that the slowest of many small requests took beside a large one, and the large one's answer."""

    async def post() -> Any:
        async with http.post(path, data=raw, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 200
            return await response.read()

    raw = io.BytesIO(json.dumps(body).encode())
    large = asyncio.create_task(post())
    waits = []
    while not large.done():
        began = time.perf_counter()
        async with http.get("/livez") as response:
            assert response.status == 200
        waits.append(time.perf_counter() - began)
    return max(waits), json.loads(await large)


async def test_megabytes_of_text_do_not_freeze_the_server(server: Server, http: aiohttp.ClientSession) -> None:
    """Tokenizing megabytes with `return_token_strs` froze every stream for seconds: the tokenizer's `encode` keeps the
    GIL, so that the thread it ran in was of no use, and the tokens' texts were made in one go on the event loop."""
    prompt = "the quick brown fox " * 120_000
    body = {"prompt": prompt, "return_token_strs": True, "add_special_tokens": False}
    waited, tokenized = await longest_wait_meanwhile(http, "/tokenize", body)
    assert waited < 1.0
    assert "".join(tokenized["token_strs"]) == prompt
    assert tokenized["count"] == len(tokenized["tokens"]) == len(tokenized["token_strs"])
    tokens = tokenized["tokens"][:500_000]
    waited, detokenized = await longest_wait_meanwhile(http, "/detokenize", {"tokens": tokens})
    assert waited < 1.0
    assert prompt.startswith(detokenized["prompt"])


async def test_models(server: Server, client: openai.AsyncOpenAI) -> None:
    models = (await client.models.list()).data
    assert [model.id for model in models] == ["tiny", "alias"]
    assert (await client.models.retrieve("alias")).id == "alias"
    with pytest.raises(openai.NotFoundError) as refusal:
        await client.models.retrieve("other/name")
    assert refusal.value.code == "model_not_found"


async def test_prompts_without_a_seed_are_drawn_each_by_its_own(server: Server, client: openai.AsyncOpenAI) -> None:
    """Equal prompts of one request got equal texts at any temperature: one seed was drawn for all of them."""
    await client.completions.create(model="tiny", prompt=["hello"] * 4, n=2, temperature=1)
    assert len({request.sampling.seed for request in server.engine.requests}) == 8


async def test_a_seed_that_was_asked_for_holds_for_every_prompt(server: Server, client: openai.AsyncOpenAI) -> None:
    await client.completions.create(model="tiny", prompt=["hello"] * 3, seed=5)
    assert [request.sampling.seed for request in server.engine.requests] == [5, 5, 5]


@pytest.mark.parametrize(("prompts", "n"), [(1, 9), (3, 3), (9, 1)])
async def test_more_choices_than_may_wait(server: Server, client: openai.AsyncOpenAI, prompts: int, n: int) -> None:
    """They were let in, the first choice computed the prompt, and the ones beyond the queue's end made the whole
    request a 503, whether or not anything else ran."""
    assert server.engine.info.max_waiting == 8
    with pytest.raises(openai.BadRequestError, match=r"'n' \d exceeds the 8 sequences") as refusal:
        await client.completions.create(model="tiny", prompt=["hello"] * prompts, n=n)
    assert refusal.value.param == "n"
    if prompts == 1:
        with pytest.raises(openai.BadRequestError, match="'n' 9"):
            await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], n=n)
    assert server.engine.requests == []
