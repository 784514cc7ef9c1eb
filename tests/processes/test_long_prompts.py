"""A prompt of 100,000 tokens: YaRN by flag, text of that length through gateway and pods, its pages handed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.serving import EnginePod, Fleet
from support.tiny_models import build_tiny_model
from tandem_contract import metrics as names

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

CONTEXT = 131_072
LONG = 100_000
PAGE_SIZE = 16


@pytest.fixture(scope="module")
def long_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    # As small as can be: attention to 100,000 tokens is what takes the time.
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 16}
    model = build_tiny_model(tmp_path_factory.mktemp("short"), "llama", max_position_embeddings=32_768, **shape)
    with Fleet(model, tmp_path_factory.mktemp("fleet")) as made:
        yield made


def pod(fleet: Fleet, role: str) -> EnginePod:
    return fleet.pod(role, max_model_len=CONTEXT, rope_scaling="yarn", kv_cache_memory="32MiB")


def complete(url: str, prompt: str) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=500) as client:
        return client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=4)


def text_of(tokens: int) -> str:
    """Each character is a token of the tiny models' tokenizer."""
    return " ".join(str(number) for number in range(tokens))[:tokens]


def test_a_long_prompt_is_handed_over(long_fleet: Fleet) -> None:
    prefill, decode = pod(long_fleet, "prefill"), pod(long_fleet, "decode")
    prefill.wait_ready()
    decode.wait_ready()
    gateway = long_fleet.gateway([decode], [prefill])
    gateway.wait_ready()
    first = complete(gateway.url, text_of(LONG))
    assert first.usage.prompt_tokens == LONG
    # All but the last token, which is the first step of the decode pod.
    assert decode.metric(names.HANDOFF_PAGES, side="received") == -(-(LONG - 1) // PAGE_SIZE)
    again = complete(gateway.url, text_of(LONG))
    assert again.choices[0].text == first.choices[0].text
    assert again.usage.prompt_tokens_details.cached_tokens == LONG - PAGE_SIZE
    prefill.wait_idle()
    decode.wait_idle()
