"""Function calls of chat completions, over a real socket: what a chunk may hold."""

from __future__ import annotations

from typing import Any

import openai
from support.api_server import Server
from tandem_runtime.engine.messages import EngineOutput
from tandem_runtime.server.choice import Choice
from tandem_runtime.text.tool_calls import CallDelta, ToolCallParser

TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
ANSWER = (
    'Hm.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>'
)


async def test_a_chunk_has_parts_of_one_call_at_most(server: Server, client: openai.AsyncOpenAI) -> None:
    """Symptom: LlamaIndex streamed calls without arguments. Cause: a call's name and its first brace were two parts of
    one chunk, of which it reads the first."""
    server.engine.resize(max_model_len=4096)
    server.say(ANSWER)
    calls: list[list[str]] = []
    text, finish = "", []
    stream = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], tools=TOOLS, stream=True
    )
    async for chunk in stream:
        [choice] = chunk.choices
        text += choice.delta.content or ""
        finish.append(choice.finish_reason)
        for piece in (choice.delta.tool_calls or [])[:1]:
            assert piece.function is not None
            if piece.id is not None:
                calls.append([piece.function.name or "", ""])
            calls[piece.index][1] += piece.function.arguments or ""
    assert calls == [["weather", '{"city": "Paris"}'], ["now", '{"a": 1}']]
    assert (text, finish[-1], set(finish[:-1])) == ("Hm.", "tool_calls", {None})


def test_tokens_that_come_together_are_as_few_pieces_as_can_be() -> None:
    class OneToken:
        def push(self, token_id: int) -> str:
            return ANSWER

    choice = Choice(0, OneToken(), tools=ToolCallParser({"weather", "now"}))  # type: ignore[arg-type]
    delta = choice.accept(EngineOutput(request_id="r", token_ids=[7], finish_reason="stop"))
    assert delta.said == ["Hm.", CallDelta(0, "weather", '{"city": "Paris"}'), CallDelta(1, "now", '{"a": 1}')]
