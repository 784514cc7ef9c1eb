"""How LlamaIndex calls functions and parses structures, as JSON; see tests/processes/test_clients_that_call.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


def weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"{city}: sunny for {days} days."


QUESTION = "What is the weather in Paris?"


async def main(base_url: str) -> None:
    common: dict[str, Any] = {"model": "tiny", "api_base": base_url, "api_key": "none", "temperature": 0}
    chat = OpenAILike(
        **common, context_window=4096, max_tokens=500, max_retries=0, is_chat_model=True,
        is_function_calling_model=True, additional_kwargs={"extra_body": {"enable_thinking": False}},
    )  # fmt: skip
    responses = OpenAIResponses(**common, context_window=4096, max_output_tokens=500, max_retries=0)
    print(json.dumps({"chat": await _answers(chat), "responses": await _answers(responses)}))


async def _answers(model: Any) -> dict[str, Any]:
    tools = [FunctionTool.from_defaults(weather, fn_schema=Weather)]
    asked: dict[str, Any] = {"tools": tools, "user_msg": QUESTION, "tool_required": True}
    *_, streamed = model.stream_chat_with_tools(**asked)
    return {
        "whole": _calls(model, model.chat_with_tools(**asked)),
        "streamed": _calls(model, streamed),
        "async": _calls(model, await model.achat_with_tools(**asked)),
        "ran": str(model.predict_and_call(tools, QUESTION, tool_required=True)),
        "structure": model.structured_predict(Weather, PromptTemplate(QUESTION)).model_dump(),
    }


def _calls(model: Any, answer: Any) -> list[Any]:
    return [[call.tool_name, call.tool_kwargs] for call in model.get_tool_calls_from_response(answer)]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
