from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest
from support import tiny_tokenizer
from support.api_server import Server
from support.scripted_engine import ScriptedEngine
from tandem_contract.flags import ServeFlags
from tandem_runtime.server.auth import ApiKeys, Tickets
from tandem_runtime.server.pod import LoadedModel, Pod
from tandem_runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))


@pytest.fixture
def flags(tiny_folder: Path) -> ServeFlags:
    return ServeFlags(model=str(tiny_folder), role="decode", ticket_key_file="unused")


@pytest.fixture
async def server(flags: ServeFlags, tokenizer: Tokenizer) -> AsyncIterator[Server]:
    engine = ScriptedEngine()
    pod = Pod(
        name="d-0",
        flags=flags,
        models=("tiny", "alias"),
        api_keys=ApiKeys(None),
        tickets=Tickets(None),
        started_at=1_700_000_000,
        loaded=LoadedModel(engine, tokenizer, splits_reasoning=True),
    )
    running = Server(pod, engine, tokenizer)
    running.say("Hello, world.")
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
