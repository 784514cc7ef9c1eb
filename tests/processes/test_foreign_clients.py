"""LangChain's and LlamaIndex's OpenAI adapters against real processes, through a gateway with prefill apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.foreign_clients import answers
from support.service import serving
from support.serving import Fleet

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

CONVERSATION: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Say it."},
]


@pytest.fixture(scope="module")
def base_url(fleet: Fleet) -> Iterator[str]:
    with serving(fleet) as service:
        yield service.base_url


@pytest.fixture(scope="module")
def expected(base_url: str) -> dict[str, Any]:
    """What the official client gets."""
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(model="tiny", messages=CONVERSATION, temperature=0, max_tokens=12)
        text = client.completions.create(model="tiny", prompt="Once upon a time", temperature=0, max_tokens=12)
    assert chat.usage is not None
    return {
        "text": chat.choices[0].message.content,
        "finish": chat.choices[0].finish_reason,
        "tokens": chat.usage.total_tokens,
        "completion": text.choices[0].text,
    }


def test_langchain(base_url: str, expected: dict[str, Any]) -> None:
    got = answers("langchain_client.py", base_url)
    text = expected["text"]
    assert [got[kind] for kind in ("invoke", "stream", "ainvoke", "responses", "responses stream")] == [text] * 5
    assert got["batch"] == [text] * 2
    assert got["usage"] == got["stream usage"] == expected["tokens"]
    assert got["finish"] == expected["finish"]
    assert got["responses status"] == ("incomplete" if expected["finish"] == "length" else "completed")
    assert got["logprobs"] > 0
    assert got["choices"] == 2
    assert "400" in got["refused"]
    assert "'stop'" in got["refused"]


def test_llama_index(base_url: str, expected: dict[str, Any]) -> None:
    got = answers("llama_index_client.py", base_url)
    assert [got[kind] for kind in ("chat", "stream", "achat")] == [expected["text"]] * 3
    assert got["complete"] == got["stream complete"] == expected["completion"]
