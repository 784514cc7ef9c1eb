"""Chat completions through the official client, over a real socket."""

from __future__ import annotations

import openai
from support.api_server import Server

QUESTION = [{"role": "user", "content": "Say hello."}]


async def test_whole_answer(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION)
    choice = answer.choices[0]
    assert choice.message.content == "Hello, world."
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls == []
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream(server: Server, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello, world."
    assert chunks[-1].usage is not None
