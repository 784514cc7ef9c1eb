"""An engine pod's life: loading, ready, draining, gone. In one process, with a scripted engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.held_up import held_up, narrow_connector
from support.ports import free_port
from support.scripted_engine import ScriptedEngine
from tandem_contract.flags import ServeFlags
from tandem_contract.headers import SIGNATURE
from tandem_contract.ticket import sign_message
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.messages import EngineStatus
from tandem_runtime.server.main import serve_pod
from tandem_runtime.text.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Life:
    flags: ServeFlags
    engine: ScriptedEngine
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.flags.port}"

    def start_engine(self, flags: ServeFlags, name: str) -> ScriptedEngine:
        self.started.set()
        return self.engine

    async def serve(self) -> int:
        return await serve_pod(self.flags, self.start_engine, self.stop)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.Task[int]]]:
        """A client, and the pod's exit status to come."""
        task = asyncio.create_task(self.serve())
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=20)) as http:
            await self.started.wait()
            yield http, task
        self.stop.set()
        await asyncio.wait_for(task, 20)

    async def until_ready(self, http: aiohttp.ClientSession) -> None:
        self.engine.loaded.set()
        while await probe(http, "/readyz") != 200:
            pass


async def probe(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as response:
        return response.status


@pytest.fixture
def life(tiny_folder: Path, tokenizer: Tokenizer) -> Life:
    flags = ServeFlags(
        model=str(tiny_folder),
        served_model_name=("tiny",),
        host="127.0.0.1",
        port=free_port(),
        metrics_port=free_port(),
        handoff_port=free_port(),
    )
    engine = ScriptedEngine(lambda request: tokenizer.encode("Hello, world.", add_special_tokens=False))
    return Life(flags, engine)


async def test_listens_while_the_model_loads(life: Life) -> None:
    async with life.running() as (http, _):
        assert await probe(http, "/livez") == 200
        assert await probe(http, "/readyz") == 503
        assert await probe(http, "/v1/models") == 200
        async with http.post(CHAT, json=BODY) as response:
            assert response.status == 503
            assert "loading" in (await response.json())["error"]["message"]
        async with http.get("/internal/v1/status") as response:
            assert not (await response.json())["ready"]
        await life.until_ready(http)
        async with http.post(CHAT, json=BODY) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "Hello, world."
        async with http.get("/internal/v1/status") as response:
            status = await response.json()
        assert status["ready"]
        assert (status["models"], status["max_model_len"], status["kv_pages_total"]) == (["tiny"], 256, 64)
        assert status["fingerprint"] == life.engine.info.fingerprint.digest()
    assert life.engine.closed


async def test_streams_in_flight_outlive_the_stop_signal(life: Life) -> None:
    life.engine.gate = asyncio.Event()
    async with life.running() as (http, exit_status):
        await life.until_ready(http)
        async with http.post(CHAT, json=BODY | {"stream": True}) as response:
            await response.content.readline()
            life.stop.set()
            while await probe(http, "/readyz") == 200:
                pass
            async with http.get("/internal/v1/status") as status:
                assert (await status.json())["draining"]
            async with http.post(CHAT, json=BODY) as late:
                assert late.status == 503
            life.engine.gate.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        assert await exit_status == 0


@pytest.mark.parametrize("n", [1, 2])
async def test_what_outlasts_the_drain_timeout_ends_in_an_error(life: Life, n: int) -> None:
    life.engine.gate = asyncio.Event()
    life.flags = replace(life.flags, drain_timeout=0.05)
    async with life.running() as (http, exit_status):
        await life.until_ready(http)
        async with http.post(CHAT, json=BODY | {"stream": True, "n": n}) as response:
            await response.content.readline()
            whole = asyncio.create_task(http.post(CHAT, json=BODY))
            for _ in range(n + 1):
                await life.engine.began.get()
            life.stop.set()
            raw = await response.text()
            assert '"error"' in raw.rstrip().splitlines()[-1]
            assert "[DONE]" not in raw
            async with await whole as refused:
                assert refused.status == 503
        assert await exit_status == 0
    assert len(life.engine.ended) == n + 1


async def test_a_client_that_reads_nothing_is_told_of_the_end_once_it_reads_on(
    life: Life, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """The drain's cancellation meets a write that waits for the client, and must spare what is written after it."""
    life.engine.resize(max_model_len=100_000)
    words = tokenizer.encode("Hello, world.", add_special_tokens=False) * 4000
    life.engine.reply = lambda request: words
    life.flags = replace(life.flags, drain_timeout=0.05)
    async with life.running() as (http, exit_status):
        await life.until_ready(http)
        long = BODY | {"stream": True, "max_tokens": len(words), "logprobs": True, "top_logprobs": 20}
        narrow = aiohttp.ClientSession(life.url, connector=narrow_connector(), read_bufsize=1024)
        async with narrow, narrow.post(CHAT, json=long) as response:
            await held_up(life.flags.port)
            life.stop.set()
            while "drain timeout" not in caplog.text:
                await probe(http, "/readyz")
            raw = await response.text()
            assert '"error"' in raw.rstrip().splitlines()[-1]
        assert await exit_status == 0


async def test_a_prefill_pod_ends_its_peers_work_first(life: Life) -> None:
    async with life.running() as (http, exit_status):
        await life.until_ready(http)
        life.engine.on_status(EngineStatus(running=1))
        life.stop.set()
        while await probe(http, "/readyz") == 200:
            pass
        assert not exit_status.done()
        life.engine.on_status(EngineStatus(running=0))
        assert await asyncio.wait_for(exit_status, 5) == 0


async def test_a_failed_load_is_a_startup_error(life: Life) -> None:
    life.engine.startup_error = StartupError("too little memory")
    with pytest.raises(StartupError, match="too little memory"):
        await life.serve()
    assert life.engine.closed


async def test_a_missing_tokenizer_is_known_at_once(life: Life, tmp_path: Path) -> None:
    life.flags = replace(life.flags, model=str(tmp_path))
    with pytest.raises(StartupError, match=r"there is no tokenizer\.json"):
        await life.serve()
    assert not life.started.is_set()


async def test_a_bad_tokenizer_does_not_wait_for_the_weights(life: Life, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    life.flags = replace(life.flags, model=str(tmp_path))
    with pytest.raises(StartupError, match=r"tokenizer\.json cannot be read"):
        await life.serve()
    assert life.engine.closed


async def test_a_missing_folder_is_known_at_once(life: Life, tmp_path: Path) -> None:
    life.flags = replace(life.flags, model=str(tmp_path / "nowhere"))
    with pytest.raises(StartupError, match=r"--model .*nowhere: no such folder"):
        await life.serve()
    assert not life.started.is_set()


@pytest.mark.parametrize("flag", ["chat_template", "api_key_file", "ticket_key_file"])
async def test_unusable_files_are_known_before_the_model_loads(life: Life, tmp_path: Path, flag: str) -> None:
    changes: dict[str, Any] = {flag: str(tmp_path)}
    life.flags = replace(life.flags, **changes)
    with pytest.raises(StartupError, match=f"^--{flag.replace('_', '-')} {tmp_path}: it is a folder; "):
        await life.serve()
    assert not life.started.is_set()


@pytest.mark.parametrize("flag", ["port", "metrics_port"])
async def test_a_busy_port_is_known_before_the_model_loads(life: Life, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(life.flags, flag)))
        taken.listen()
        with pytest.raises(StartupError, match=f"--{flag.replace('_', '-')} .*in use"):
            await life.serve()
    assert not life.started.is_set()


async def test_a_dead_engine_ends_the_pod(life: Life) -> None:
    async with life.running() as (http, exit_status):
        await life.until_ready(http)
        life.engine.dead.set()
        assert await asyncio.wait_for(exit_status, 5) == 1


async def test_a_stop_while_loading_is_a_clean_exit(life: Life) -> None:
    async with life.running() as (_, exit_status):
        life.stop.set()
        assert await exit_status == 0
    assert life.engine.closed


async def test_pods_that_hand_over_listen_for_their_peers(life: Life, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123")
    life.flags = replace(life.flags, role="prefill", ticket_key_file=str(keys))
    async with life.running() as (http, _):
        assert life.engine.post_control is not None
        await life.until_ready(http)
        url = f"http://127.0.0.1:{life.flags.handoff_port}/handoff/v1/ack"
        async with http.post(url, data=b"{}") as response:
            assert response.status == 401
        signed = {SIGNATURE: sign_message("/handoff/v1/ack", b"{}", b"0123456789abcdef0123")}
        async with http.post(url, data=b"{}", headers=signed) as response:
            assert response.status == 404
