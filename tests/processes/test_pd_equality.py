"""Prefill and decode in separate processes answer exactly as one process does, in bf16 as models are served."""

from __future__ import annotations

import random
from typing import Any

import pytest
from processes.asking import ask, completion_body, random_prompt, texts
from support.serving import EnginePod, Fleet, Process
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pods(fleet: Fleet) -> tuple[EnginePod, EnginePod, EnginePod]:
    started = tuple(fleet.pod(role, dtype="bfloat16") for role in ("prefill", "decode", "both"))
    for pod in started:
        pod.wait_ready()
    return started


@pytest.fixture(scope="module")
def gateway(fleet: Fleet, pods: tuple[EnginePod, EnginePod, EnginePod]) -> Process:
    prefill, decode, _ = pods
    process = fleet.gateway([decode], [prefill])
    process.wait_ready()
    return process


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
    gateway: Process, pods: tuple[EnginePod, EnginePod, EnginePod], sampling: dict[str, Any]
) -> None:
    prefill, decode, single = pods
    asked = bodies(len(sampling), **sampling)
    moved_before = decode.metric(names.HANDOFF_PAGES, side="received")
    through_gateway = await texts(gateway.url, asked, concurrency=16)
    assert through_gateway == await texts(single.url, asked, concurrency=16)
    # Nearly every prompt crossed; those of one token have nothing to hand over.
    decode.wait_idle()
    prefill.wait_idle()
    assert decode.metric(names.HANDOFF_PAGES, side="received") > moved_before + 200
    assert decode.metric(names.HANDOFF_PAGES, side="received") == prefill.metric(names.HANDOFF_PAGES, side="sent")
    assert decode.metric(names.PREFIX_HITS) > 0


async def test_only_what_the_decode_pod_lacks_is_moved(
    gateway: Process, pods: tuple[EnginePod, EnginePod, EnginePod]
) -> None:
    _, decode, _ = pods
    prompt = random_prompt(random.Random(99), 400)
    timing = {"X-Tandem-Timing": "1"}
    first = await ask(gateway.url, completion_body(prompt), timing)
    assert first["tandem"]["handoff_pages"] == 25
    assert first["tandem"]["handoff_bytes"] == 25 * decode_page_bytes(decode)
    second = await ask(gateway.url, completion_body(prompt + random_prompt(random.Random(98), 64)), timing)
    assert second["tandem"]["handoff_pages"] == 4
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 400


def decode_page_bytes(decode: EnginePod) -> int:
    """llama of tests/support/tiny_models.py: 2 KV heads, 3 layers, K and V, 16 tokens, 16 dims, bf16."""
    assert decode.status()["page_size"] == 16
    return 2 * 3 * 2 * 16 * 16 * 2


async def test_n_samples_share_one_handoff(gateway: Process, pods: tuple[EnginePod, EnginePod, EnginePod]) -> None:
    _, decode, single = pods
    body = completion_body(random_prompt(random.Random(97), 320), temperature=1.0, seed=5, n=4)
    before = decode.metric(names.HANDOFF_PAGES, side="received")
    answer = await ask(gateway.url, body)
    alone = await ask(single.url, body)
    assert [choice["text"] for choice in answer["choices"]] == [choice["text"] for choice in alone["choices"]]
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    decode.wait_idle()
    assert decode.metric(names.HANDOFF_PAGES, side="received") == before + 20
