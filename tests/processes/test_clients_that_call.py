"""Function calls as foreign clients make them, through a gateway with prefill apart.

The model is noise: it calls because it must, and its calls are right because they cannot be otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from support.foreign_clients import answers
from support.qwen3_model import build_tiny_qwen3
from support.service import serving
from support.serving import Fleet

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

PLAIN = {"enable_thinking": False}
THINK, CLOSE_THINK = "151667", "151668"


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": Weather.model_json_schema() | {"additionalProperties": False},
    "strict": True,
}
NAMED: Any = {"type": "function", "name": "weather"}
ASKED: dict[str, Any] = {"model": "tiny", "tools": [TOOL], "max_output_tokens": 700, "extra_body": PLAIN}
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))
    with Fleet(folder, tmp_path_factory.mktemp("fleet")) as fleet, serving(fleet) as made:
        yield made.base_url


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_the_official_client(base_url: str, choice: Any) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=100) as client:
        asked = ASKED | {"tool_choice": choice, "temperature": 0, "parallel_tool_calls": False}
        whole = client.responses.create(**asked, input=QUESTION)
        [call] = whole.output
        assert call.type == "function_call"
        assert Weather.model_validate_json(call.arguments)
        with client.responses.stream(**asked, input=QUESTION) as stream:
            events = list(stream)
            final = stream.get_final_response()
        [streamed] = final.output
        assert streamed.type == "function_call"
        assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert final.usage is not None
        assert whole.usage is not None
        assert final.usage.output_tokens == whole.usage.output_tokens
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
        after = client.responses.create(**ASKED | {"max_output_tokens": 4}, input=[*QUESTION, call, output])
        assert after.usage is not None
        assert after.usage.input_tokens > whole.usage.input_tokens


async def test_the_official_async_client_after_a_thought(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=100) as client:
        thought = {"thinking_budget": 12, "logit_bias": {THINK: 100, CLOSE_THINK: -100}}
        asked = ASKED | {"tool_choice": "required", "parallel_tool_calls": False, "extra_body": thought}
        kinds = []
        async for event in await client.responses.create(**asked, input=QUESTION, stream=True):
            kinds.append(event.type)
            last = event
        assert last.type == "response.completed"
        reasoning, call = last.response.output
        assert reasoning.type == "reasoning"
        assert call.type == "function_call"
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
        assert last.response.usage is not None
        assert last.response.usage.output_tokens_details.reasoning_tokens == 14  # the tags count
        assert kinds.index("response.reasoning_text.done") < kinds.index("response.function_call_arguments.delta")
        effort = await client.responses.create(
            model="tiny", input=QUESTION, reasoning={"effort": "none"}, max_output_tokens=3,
            extra_body={"logit_bias": {THINK: 100}},
        )  # fmt: skip
        assert [item.type for item in effort.output] == ["message"]  # the template closed the thought


def test_langchain(base_url: str) -> None:
    for api, got in answers("langchain_tools.py", base_url).items():
        [[name, arguments]] = got["whole"]
        assert name == "Weather", api
        assert Weather.model_validate(arguments)
        assert got["streamed"] == got["async"] == got["whole"], api
        assert got["pieces"] > 5
        assert got["named"][0][0] == "Weather"
        assert got["after"], api
        assert Weather.model_validate(got["schema"])
        assert Weather.model_validate(got["function"])
        assert got["tokens"] > 5


def test_llama_index(base_url: str) -> None:
    for api, got in answers("llama_index_tools.py", base_url).items():
        [[name, arguments]] = got["whole"]
        assert name == "weather", api
        assert Weather.model_validate(arguments)
        assert got["streamed"] == got["async"] == got["whole"], api
        assert "sunny" in got["ran"]
        assert Weather.model_validate(got["structure"])
