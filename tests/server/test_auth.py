from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import openai
import pytest
from prometheus_client import generate_latest
from support.api_server import Server
from support.serving import total
from tandem_contract import metrics as names
from tandem_contract.ticket import Ticket, new_nonce, sign
from tandem_runtime.core.errors import StartupError
from tandem_runtime.server.auth import Clients, Tickets

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
KEY = b"0123456789abcdef0123"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_bytes(KEY + b"\n")
    return file


def ticket(**changes: object) -> Ticket:
    plain = Ticket(
        request_id="r-1",
        prefill_host="10.0.0.9",
        prefill_port=8100,
        prefill_incarnation="p-inc",
        nonce=new_nonce(),
        expires_at=time.time() + 60,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


async def ask(http: aiohttp.ClientSession, header: str, body: dict[str, object] = {}) -> tuple[int, str | None]:  # noqa: B006
    async with http.post(CHAT, json=BODY | body, headers={"X-Tandem-Ticket": header}) as response:
        answer = await response.json()
        return response.status, answer.get("error", {}).get("code")


async def test_a_good_ticket_reaches_the_engine(server: Server, http: aiohttp.ClientSession, key_file: Path) -> None:
    server.pod.tickets = Tickets.from_file(str(key_file))
    first, second = ticket(), ticket(prefill_host="10.0.0.10")
    assert await ask(http, f"{sign(first, KEY)}, {sign(second, KEY)}", {"n": 2}) == (200, None)
    leader, follower = server.engine.requests
    assert [signed.ticket for signed in leader.tickets] == [first, second]
    assert leader.tickets[0].text == sign(first, KEY)
    assert (follower.tickets, follower.after) == ([], leader.request_id)


async def test_bad_tickets_are_ignored_and_counted(server: Server, http: aiohttp.ClientSession, key_file: Path) -> None:
    """Symptom: clocks two minutes apart between gateway and pods, and every request was a 401.

    A ticket asks for less work here, so without a good one the prompt is computed here; the engine, which contacts
    the address in a ticket, never sees a bad one.
    """
    server.pod.tickets = Tickets.from_file(str(key_file))
    used, other = sign(ticket(), KEY), sign(ticket(), KEY)
    assert await ask(http, used) == (200, None)
    good = sign(ticket(), KEY)
    for header, reason, left in (
        (used, "replayed", 0),
        (sign(ticket(expires_at=time.time() - 1), KEY), "expired", 0),
        (sign(ticket(), b"another key, long enough"), "signature", 0),
        (good[:-4] + "AAAA", "signature", 0),
        ("v1.x.y", "malformed", 0),
        ("nonsense", "malformed", 0),
        (f"nonsense, {other}", "malformed", 1),
        (",".join(sign(ticket(), KEY) for _ in range(5)), "malformed", 0),
    ):
        before = refused(server, reason)
        assert await ask(http, header) == (200, None), header
        assert len(server.engine.requests[-1].tickets) == left, header
        assert refused(server, reason) == before + 1, header


async def test_without_keys_no_ticket_is_good(server: Server, http: aiohttp.ClientSession) -> None:
    assert await ask(http, sign(ticket(), KEY)) == (200, None)
    assert server.engine.requests[-1].tickets == []


def refused(server: Server, reason: str) -> float:
    exposition = generate_latest(server.pod.metrics.registry).decode()
    return total(exposition, names.TICKETS_REFUSED, reason=reason)


async def test_api_keys(server: Server, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    file = tmp_path / "api-keys"
    file.write_text("sk-one\n\nsk-two\n")
    server.pod.clients = Clients.from_file(str(file))
    for key, ok in (("sk-one", True), ("sk-two", True), ("sk-on", False), ("", False)):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key or "x", max_retries=0) as client:
            if ok:
                await client.models.list()
            else:
                with pytest.raises(openai.AuthenticationError) as refusal:
                    await client.models.list()
                assert refusal.value.code == "invalid_api_key"
    for path in ("/livez", "/readyz", "/openapi.json", "/internal/v1/status"):
        async with http.get(path) as response:
            assert response.status == 200, path
    for path in ("/tokenize", "/detokenize"):
        async with http.post(path, json={}) as response:
            assert response.status == 401, path


@pytest.mark.parametrize("load", [Clients.from_file, Tickets.from_file])
def test_a_bad_file_stops_the_start(tmp_path: Path, load: Callable[[str], object]) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(StartupError, match="key-file"):
        load(str(empty))
    with pytest.raises(StartupError, match="key-file"):
        load(os.fspath(tmp_path / "absent"))
