"""How `langchain-openai` calls functions and parses structures, as JSON (tests/processes/test_clients_that_call.py)."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


QUESTION = HumanMessage("What is the weather in Paris?")


async def main(base_url: str) -> None:
    print(json.dumps({"chat": await _answers(base_url, False), "responses": await _answers(base_url, True)}))


async def _answers(base_url: str, use_responses_api: bool) -> dict[str, Any]:
    model = ChatOpenAI(
        base_url=base_url, api_key="none", model="tiny", temperature=0, max_tokens=500, max_retries=0,
        use_responses_api=use_responses_api, extra_body={"enable_thinking": False},
    )  # fmt: skip
    one = {"parallel_tool_calls": False}
    required = model.bind_tools([Weather], tool_choice="required", **one)
    named = model.bind_tools([Weather], tool_choice="Weather", strict=True, **one)
    whole = required.invoke([QUESTION])
    pieces = list(required.stream([QUESTION]))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed += piece
    outputs = [ToolMessage("Sunny.", tool_call_id=call["id"]) for call in whole.tool_calls]
    after = model.bind_tools([Weather], tool_choice="none").invoke([QUESTION, whole, *outputs], max_tokens=4)
    return {
        "whole": _calls(whole),
        "streamed": _calls(streamed),
        "pieces": len(pieces),
        "named": _calls(named.invoke([QUESTION])),
        "async": _calls(await required.ainvoke([QUESTION])),
        "after": isinstance(after, AIMessage) and not after.tool_calls,
        "schema": model.with_structured_output(Weather).invoke([QUESTION]).model_dump(),
        "function": model.with_structured_output(Weather, method="function_calling").invoke([QUESTION]).model_dump(),
        "tokens": whole.usage_metadata["output_tokens"],
    }


def _calls(message: AIMessage) -> list[Any]:
    assert all(call["id"] for call in message.tool_calls)
    return [[call["name"], call["args"]] for call in message.tool_calls]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
