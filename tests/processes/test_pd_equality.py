"""Prefill and decode in separate processes answer exactly as one process does, in bf16 as models are served."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from processes.asking import ask, completion_body, random_prompt, texts
from support.service import Service, serving
from support.serving import EnginePod, Fleet
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes


BF16 = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def service(fleet: Fleet) -> Iterator[Service]:
    with serving(fleet, prefill=BF16, decode=BF16) as made:
        yield made


@pytest.fixture(scope="module")
def single(fleet: Fleet) -> EnginePod:
    pod = fleet.pod("both", **BF16)
    pod.wait_ready()
    return pod


def bodies(seed: int, **sampling: Any) -> list[dict[str, Any]]:
    """50 prompts; half of them begin with one of two shared prefixes, some of which both sides will hold."""
    rng = random.Random(seed)
    shared = [random_prompt(rng, 200), random_prompt(rng, 90)]
    made = []
    for index in range(50):
        prefix = rng.choice(shared)[: rng.randrange(201)] if index % 2 else []
        prompt = prefix + random_prompt(rng, rng.randrange(1, 300))
        made.append(completion_body(prompt, **sampling, **({"seed": index} if sampling else {})))
    return made


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5}], ids=["greedy", "seeded"]
)
async def test_fifty_prompts_at_concurrency_sixteen(
    service: Service, single: EnginePod, sampling: dict[str, Any]
) -> None:
    prefill, decode = service.prefill, service.decode
    asked = bodies(len(sampling), **sampling)
    moved_before = decode.metric(names.HANDOFF_PAGES, side="received")
    through_gateway = await texts(service.gateway.url, asked, concurrency=16)
    assert through_gateway == await texts(single.url, asked, concurrency=16)
    # Nearly every prompt crossed; those of one token have nothing to hand over.
    service.wait_idle()
    assert decode.metric(names.HANDOFF_PAGES, side="received") > moved_before + 200
    assert decode.metric(names.HANDOFF_PAGES, side="received") == prefill.metric(names.HANDOFF_PAGES, side="sent")
    assert decode.metric(names.PREFIX_HITS) > 0


async def test_only_what_the_decode_pod_lacks_is_moved(service: Service) -> None:
    prompt = random_prompt(random.Random(99), 400)
    timing = {"X-Tandem-Timing": "1"}
    first = await ask(service.gateway.url, completion_body(prompt), timing)
    assert first["tandem"]["handoff_pages"] == 25
    assert first["tandem"]["handoff_bytes"] == 25 * decode_page_bytes(service.decode)
    second = await ask(service.gateway.url, completion_body(prompt + random_prompt(random.Random(98), 64)), timing)
    assert second["tandem"]["handoff_pages"] == 4
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 400


def decode_page_bytes(decode: EnginePod) -> int:
    """llama of tests/support/tiny_models.py: 2 KV heads, 3 layers, K and V, 16 tokens, 16 dims, bf16."""
    assert decode.status()["page_size"] == 16
    return 2 * 3 * 2 * 16 * 16 * 2


async def test_n_samples_share_one_handoff(service: Service, single: EnginePod) -> None:
    decode = service.decode
    body = completion_body(random_prompt(random.Random(97), 320), temperature=1.0, seed=5, n=4)
    before = decode.metric(names.HANDOFF_PAGES, side="received")
    answer = await ask(service.gateway.url, body)
    alone = await ask(single.url, body)
    assert [choice["text"] for choice in answer["choices"]] == [choice["text"] for choice in alone["choices"]]
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    decode.wait_idle()
    assert decode.metric(names.HANDOFF_PAGES, side="received") == before + 20
