"""The official client against real processes: one pod, and a gateway in front of separate prefill and decode pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.service import Service, serving
from support.serving import EnginePod, Fleet, Process
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which pages cross, and when?"}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def single(fleet: Fleet) -> EnginePod:
    pod = fleet.pod("both")
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def service(fleet: Fleet) -> Iterator[Service]:
    with serving(fleet) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(service: Service) -> Process:
    return service.gateway


@pytest.fixture(params=["single", "gateway"])
def base_url(request: pytest.FixtureRequest) -> str:
    server: Process = request.getfixturevalue(request.param)
    return f"{server.url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_response_and_its_stream_agree(client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY, input="Say it.", instructions="Twice.", max_output_tokens=12)
    with client.responses.stream(**GREEDY, input="Say it.", instructions="Twice.", max_output_tokens=12) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].type in ("response.incomplete", "response.completed")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    follow_up: list[Any] = [{"role": "user", "content": "Say it."}, *whole.output, {"role": "user", "content": "More."}]
    assert client.responses.create(**GREEDY, input=follow_up, max_output_tokens=4).usage is not None


async def test_the_async_client(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        whole = await client.chat.completions.create(**GREEDY, messages=QUESTION, max_tokens=8)
        stream = await client.chat.completions.create(**GREEDY, messages=QUESTION, max_tokens=8, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content
        events = await client.responses.create(**GREEDY, input="Hi", max_output_tokens=4, stream=True)
        kinds = [event.type async for event in events]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


def test_a_conversation_is_handed_over(service: Service) -> None:
    before = service.decode.metric(names.HANDOFF_PAGES, side="received")
    with openai.OpenAI(base_url=service.base_url, api_key="none", max_retries=0) as client:
        client.responses.create(**GREEDY, input="A question of its own. " * 20, max_output_tokens=2)
    assert service.decode.metric(names.HANDOFF_PAGES, side="received") > before


def test_models_and_the_refusal_of_embeddings(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.BadRequestError, match="Qwen3-Embedding"):
        client.embeddings.create(model="tiny", input="Hi")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="Hi")
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(**GREEDY, input="Hi", previous_response_id="resp_1")
