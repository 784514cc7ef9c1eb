"""Pods of equal weights that answer differently: whatever becomes of one, no stream goes on at another."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from processes.streaming import Heard, hear
from support.serving import EnginePod, Fleet
from tandem_contract import headers
from tandem_contract import metrics as names

pytestmark = pytest.mark.processes

BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Say on and on."}],
    "max_tokens": 1500,
    "seed": 7,
    "ignore_eos": True,
    "stream": True,
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def pods(fleet: Fleet, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EnginePod]]:
    """One as it is, one with another chat template, one whose folder samples and spells otherwise."""
    folder = tmp_path_factory.mktemp("otherwise")
    template = folder / "other.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}!{% endfor %}")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    made = [
        fleet.pod("decode"),
        fleet.pod("decode", chat_template=str(template)),
        fleet.pod("decode", model=str(model)),
    ]
    for pod in made:
        pod.wait_ready()
    yield made
    for pod in made:
        pod.kill()


async def heard_at(url: str, hearer: Heard, where: dict[str, list[Heard]]) -> Heard:
    """`where` is told by the name of the pod."""
    async with aiohttp.ClientSession() as session, session.post(url + CHAT, json=BODY) as response:
        pod = response.headers.get(headers.PODS, "").removeprefix("decode=")
        where.setdefault(pod, []).append(hearer)
        async for line in response.content:
            hearer.take(line)
    return hearer


async def test_streams_stay_with_their_own_kind(fleet: Fleet, pods: list[EnginePod]) -> None:
    known = [pod.status() for pod in pods]
    assert len({status["fingerprint"] for status in known}) == 1
    assert len({status["continuation"] for status in known} | {""}) == 4

    async with aiohttp.ClientSession() as session:
        alone = [await hear(session, pod.url + CHAT, BODY, Heard()) for pod in pods]
    texts = {status["name"]: heard.text[0] for status, heard in zip(known, alone, strict=True)}
    assert len(set(texts.values())) == 3

    gateway = fleet.gateway(pods, [], strategy="RoundRobin", resume_timeout=1.0, status_interval=0.1)
    gateway.wait_ready()
    hearers = [Heard() for _ in range(6)]
    where: dict[str, list[Heard]] = {}
    hearing = asyncio.gather(*[heard_at(gateway.url, hearer, where) for hearer in hearers])
    while min(hearer.chunks for hearer in hearers) < 10:
        assert not hearing.done()
        await asyncio.sleep(0.01)
    assert {name: len(there) for name, there in where.items()} == dict.fromkeys(texts, 2)
    drained, killed, left = (where[status["name"]] for status in known)
    pods[1].kill()
    assert await asyncio.to_thread(pods[0].stop) == 0
    await hearing

    kept, cut, other = (texts[status["name"]] for status in known)
    assert [(heard.text[0], heard.error, heard.done) for heard in drained] == [(kept, None, 1)] * 2
    assert [(heard.text[0], heard.error, heard.done) for heard in left] == [(other, None, 1)] * 2
    for heard in killed:
        assert (heard.error["code"], heard.done) == ("no_pod_available", 0)
        assert cut.startswith(heard.text[0])
    assert gateway.metric(names.GATEWAY_STREAM_RESUMES) == 0
    assert gateway.metric(names.GATEWAY_STREAMS_LOST, reason="no_pod") == 2
    gateway.kill()
