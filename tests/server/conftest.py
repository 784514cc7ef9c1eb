from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import aiohttp
import openai
import pytest
from support import tiny_tokenizer
from support.api_server import Server
from support.scripted_engine import ScriptedEngine
from tandem_contract.flags import ServeFlags
from tandem_runtime.server.auth import Clients, Tickets
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


def new_server(flags: ServeFlags, tokenizer: Tokenizer) -> Server:
    engine = ScriptedEngine()
    pod = Pod(
        name="d-0",
        flags=flags,
        models=("tiny", "alias"),
        clients=Clients(None),
        tickets=Tickets(None),
        started_at=1_700_000_000,
        loaded=LoadedModel(engine, tokenizer, splits_reasoning=True),
    )
    server = Server(pod, engine, tokenizer)
    server.say("Hello, world.")
    return server


@pytest.fixture
async def server(flags: ServeFlags, tokenizer: Tokenizer) -> AsyncIterator[Server]:
    server = new_server(flags, tokenizer)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def server_in_thread(flags: ServeFlags, tokenizer: Tokenizer) -> Iterator[Server]:
    """For blocking clients."""
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as thread:
        server = thread.submit(new_server, flags, tokenizer).result()
        stop = asyncio.Event()
        started = Future[None]()

        async def serve() -> None:
            await server.start()
            started.set_result(None)
            await stop.wait()
            await server.stop()

        serving = thread.submit(runner.run, serve())
        started.result(timeout=20)
        yield server
        runner.get_loop().call_soon_threadsafe(stop.set)
        serving.result(timeout=20)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
