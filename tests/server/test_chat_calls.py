"""Function calls of chat completions, over a real socket: what a chunk may hold."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel
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


class Place(BaseModel):
    city: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own, of its own messages
async def test_what_the_official_client_parsed_goes_back_as_it_came(server: Server, client: openai.AsyncOpenAI) -> None:
    """Its helpers put `parsed` and `parsed_arguments` into the message that users append to the conversation."""
    server.engine.resize(max_model_len=4096)
    question: Any = {"role": "user", "content": "Hi"}
    server.say('<tool_call>\n{"name": "Place", "arguments": {"city": "Paris"}}\n</tool_call>')
    tools = [openai.pydantic_function_tool(Place)]
    called = (await client.chat.completions.parse(model="tiny", messages=[question], tools=tools)).choices[0].message
    assert called.tool_calls
    [call] = called.tool_calls
    assert call.function.parsed_arguments == Place(city="Paris")
    server.say('{"city": "Rome"}')
    asked: Any = {"model": "tiny", "messages": [question], "response_format": Place}
    async with client.chat.completions.stream(**asked) as stream:
        said = (await stream.get_final_completion()).choices[0].message
    assert said.parsed == Place(city="Rome")

    result = {"role": "tool", "tool_call_id": call.id, "content": "fine"}
    plain_call = {"id": call.id, "type": "function", "function": {"name": "Place", "arguments": '{"city":"Paris"}'}}
    plain = [{"role": "assistant", "tool_calls": [plain_call]}, result]
    plain.append({"role": "assistant", "content": '{"city": "Rome"}'})
    indexed = called.model_dump()
    indexed["tool_calls"][0]["index"] = 0
    lengths = []
    for history in (plain, [called, result, said], [indexed, result, said.model_dump()]):
        server.say("Hm.")
        messages: Any = [question, *history, question]
        answer = await client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
        assert answer.usage
        lengths.append(answer.usage.prompt_tokens)
    assert lengths == lengths[:1] * 3


def test_tokens_that_come_together_are_as_few_pieces_as_can_be() -> None:
    class OneToken:
        def push(self, token_id: int) -> str:
            return ANSWER

    choice = Choice(0, OneToken(), tools=ToolCallParser({"weather", "now"}))  # type: ignore[arg-type]
    delta = choice.accept(EngineOutput(request_id="r", token_ids=[7], finish_reason="stop"))
    assert delta.said == ["Hm.", CallDelta(0, "weather", '{"city": "Paris"}'), CallDelta(1, "now", '{"a": 1}')]
