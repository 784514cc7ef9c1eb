"""Live streams of a pod, over real sockets: records that only a gateway gets, and streams taken up from them."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from server.conftest import new_server
from support.api_server import Server
from tandem_contract import headers
from tandem_contract.flags import ServeFlags
from tandem_contract.live_stream import END, envelope, sign_stream
from tandem_runtime.core.errors import EngineDeadError
from tandem_runtime.server.auth import Tickets
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.text.tokenizer import Tokenizer

KEY = b"k" * 32
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.fixture
async def live_server(flags: ServeFlags, tokenizer: Tokenizer, tmp_path: Path) -> AsyncIterator[Server]:
    (tmp_path / "keys").write_bytes(KEY)
    server = new_server(flags, tokenizer)
    server.pod.tickets = Tickets.from_file(str(tmp_path / "keys"))
    server.engine.resize(max_model_len=4096)
    server.engine.reply = lambda request: tokens_of(server, request.sampling.seed)
    await server.start()
    yield server
    await server.stop()


def tokens_of(server: Server, seed: int) -> list[int]:
    """Another answer for each choice, with characters of several tokens, calls, and the beginnings of stop strings."""
    text = f"<think>\nHm {seed % 5}\n</think>\n\n你好 aab aaaab STO" + " naïve 🙂" * (seed % 3) + " STOP no"
    if seed >= CALLING:
        call = '<tool_call>{"name": "f", "arguments": {"🙂": "STO"}}</tool_call>'
        text = f"<think>Hm</think>STO{call} and {call}"
    return [*server.tokenizer.encode(text, add_special_tokens=False), 2]


async def post(
    server: Server, path: str, body: bytes, *, mode: str | None = "live", key: bytes = KEY, **more: str
) -> tuple[int, bytes]:
    sent = {"Content-Type": "application/json", headers.REQUEST_ID: "req-1", headers.TIMING: "1"} | more
    if mode is not None:
        sent |= {headers.STREAM: mode, headers.SIGNATURE: sign_stream(mode, body, key)}  # type: ignore[arg-type]
    data = io.BytesIO(body)
    async with aiohttp.ClientSession() as session, session.post(server.url + path, data=data, headers=sent) as answer:
        return answer.status, await answer.read()


async def with_origin(server: Server, body: bytes, records: bytes) -> bytes:
    """`records` with the beginning that the stream of `body` has here in place of %ORIGIN%."""
    _, honest = groups((await post(server, CHAT, body))[1])
    first = json.loads(honest[0])
    beginning = f'{json.dumps(first["origin"])},"ground":{json.dumps(first["ground"])}'
    return records.replace(b"%ORIGIN%", beginning.encode())


def groups(stream: bytes) -> tuple[list[bytes], list[bytes]]:
    """The groups of events of a complete live stream, and the records between them; times are left out."""
    assert stream.endswith(END)
    stream = re.sub(rb'"tpot_seconds":[^,}]+', b'"tpot_seconds":0', stream)
    events: list[bytes] = [b""]
    records: list[bytes] = []
    for event in stream[: -len(END)].split(b"\n\n")[:-1]:
        if event.startswith(b":"):
            records.append(event[1:])
            events.append(b"")
        else:
            events[-1] += event + b"\n\n"
    return events, records


def spoken(events: list[bytes]) -> dict[int, Any]:
    """What a client makes of a stream, by choice; and the chunks that belong to none."""
    said: dict[int, Any] = {}
    for event in b"".join(events).split(b"\n\n")[:-1]:
        if event == b"data: [DONE]":
            said[-2] = said.get(-2, 0) + 1
            continue
        chunk = json.loads(event.removeprefix(b"data: "))
        if not chunk["choices"]:
            said.setdefault(-1, []).append(chunk["usage"])
        for choice in chunk["choices"]:
            said.setdefault(choice["index"], []).append((chunk["id"], chunk["created"], chunk["model"], choice))
    return said


def timeless(events: list[bytes]) -> bytes:
    """But for the second in which the answer was complete."""
    return re.sub(rb'"completed_at":\d+', b'"completed_at":0', b"".join(events))


MESSAGES = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "tiny", "stream": True, "prompt": "the quick brown", "max_tokens": 200}
INPUT = {"model": "tiny", "stream": True, "input": "hi"}
CALLING = 1000
"""Seeds from here on make the model call functions."""
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
CALLS = {"tools": [{"type": "function", "function": FUNCTION}], "seed": CALLING, "stop": "STOP"}
FLAT_CALLS = CALLS | {"tools": [{"type": "function"} | FUNCTION]}
USAGE = {"stream_options": {"include_usage": True}}
BODIES = {
    "chat": (CHAT, MESSAGES),
    "unseeded, usage": (CHAT, MESSAGES | USAGE | {"temperature": 1.0}),
    "stops, logprobs": (CHAT, MESSAGES | {"stop": ["STOP", "aaab"], "logprobs": True, "top_logprobs": 1, "seed": 1}),
    "min_tokens over a stop": (CHAT, MESSAGES | USAGE | {"stop": "STOP", "min_tokens": 60, "seed": 2}),
    "length": (CHAT, MESSAGES | USAGE | {"max_tokens": 30, "seed": 2}),
    "n": (CHAT, MESSAGES | USAGE | {"n": 3, "seed": 7, "logprobs": True}),
    "completions": (COMPLETIONS, PROMPT),
    "echo, logprobs, n": (COMPLETIONS, PROMPT | {"echo": True, "logprobs": 1, "n": 2, "seed": 3, "stop": "STOP"}),
    "prompts": (COMPLETIONS, PROMPT | USAGE | {"prompt": ["the", "lazy dog"], "n": 2, "max_tokens": 40}),
    "responses": (RESPONSES, INPUT),
    "responses, logprobs": (RESPONSES, INPUT | {"include": ["message.output_text.logprobs"], "top_logprobs": 1}),
    "calls": (CHAT, MESSAGES | USAGE | CALLS | {"logprobs": True}),
    "calls cut short": (CHAT, MESSAGES | CALLS | {"max_tokens": 50}),
    "responses, calls": (RESPONSES, INPUT | FLAT_CALLS | {"include": ["message.output_text.logprobs"]}),
    "responses, one call": (RESPONSES, INPUT | FLAT_CALLS | {"parallel_tool_calls": False}),
    "scored only": (COMPLETIONS, PROMPT | {"echo": True, "logprobs": 1, "max_tokens": 0}),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_stream_may_be_cut_after_any_record(live_server: Server, case: str) -> None:
    path, fields = BODIES[case]
    body = json.dumps(fields).encode()
    status, whole = await post(live_server, path, body)
    assert status == 200
    events, records = groups(whole)
    for cut in range(len(records) + 1):
        before = b",".join(records[:cut])
        status, rest = await post(live_server, path, envelope(body, before, elapsed_s=0.5), mode="resume")
        assert status == 200, rest
        more_events, more_records = groups(rest)
        if cut == 0:
            continue  # begun anew, perhaps with another seed
        if path == RESPONSES:
            assert timeless(events[:cut] + more_events) == timeless(events)
            continue
        if fields.get("n", 1) == 1 and path == CHAT:
            assert b"".join(events[:cut] + more_events) == b"".join(events)
            assert records[:cut] + more_records == records
        assert spoken(events[:cut] + more_events) == spoken(events)
    assert len(records) >= fields.get("n", 1)


async def test_only_the_first_unfinished_choice_asks_for_a_prefill(live_server: Server) -> None:
    body = json.dumps(MESSAGES | {"n": 3, "seed": 7}).encode()
    _, records = groups((await post(live_server, CHAT, body))[1])
    of_first = [record for record in records if "choice" not in json.loads(record)]
    live_server.engine.requests.clear()
    await post(live_server, CHAT, envelope(body, b",".join(of_first), elapsed_s=2.0), mode="resume")
    first, second = live_server.engine.requests
    assert (first.after, second.after) == ("", first.request_id)
    assert (first.sampling.seed, second.sampling.seed) == (8, 9)
    assert first.deadline_s == live_server.pod.flags.request_timeout - 2.0


async def test_nobody_but_a_gateway_gets_records(live_server: Server) -> None:
    body = json.dumps(MESSAGES | {"seed": 1}).encode()
    for mode, key in ((None, KEY), ("live", b"another-key-of-enough-bytes")):
        status, stream = await post(live_server, CHAT, body, mode=mode, key=key)
        assert (status, b"\n:" in stream) == (200, False)
        assert stream.endswith(b"data: [DONE]\n\n")
    records = await with_origin(live_server, body, b'{"outputs":[[5]],"origin":%ORIGIN%}')
    resumed = envelope(body, records, elapsed_s=0.0)
    status, refusal = await post(live_server, CHAT, resumed, mode="resume", key=b"another-key-of-enough-bytes")
    assert (status, b"only a gateway" in refusal) == (401, True)
    # Without the header an envelope is just a body with unknown fields.
    assert (await post(live_server, CHAT, resumed, mode=None))[0] == 400


@pytest.mark.parametrize(
    "records",
    [
        b'{"outputs":[[5]]}',
        b'{"outputs":[],"origin":%ORIGIN%}',
        b'{"outputs":[[999]],"origin":%ORIGIN%}',
        b'{"choice":4,"outputs":[[5]],"origin":%ORIGIN%}',
        b'{"outputs":[[5,5,5]],"origin":%ORIGIN%}',
        b'{"outputs":[[5]],"finish_reason":"length","origin":%ORIGIN%},{"outputs":[[5]]}',
        b'{"outputs":"x"}',
        b"7",
    ],
)
async def test_records_that_cannot_be_are_refused(live_server: Server, records: bytes) -> None:
    body = json.dumps(MESSAGES | {"max_tokens": 3}).encode()
    records = await with_origin(live_server, body, records)
    status, refusal = await post(live_server, CHAT, envelope(body, records, elapsed_s=0.0), mode="resume")
    assert (status, json.loads(refusal)["error"]["type"]) == (400, "invalid_request_error")


async def test_only_a_pod_that_answers_alike_goes_on(
    live_server: Server, flags: ServeFlags, tokenizer: Tokenizer
) -> None:
    """One with equal weights and another chat template took a stream over, and its text was of two minds."""
    body = json.dumps(MESSAGES | {"seed": 1}).encode()
    _, records = groups((await post(live_server, CHAT, body))[1])
    resumed = envelope(body, b",".join(records[:3]), elapsed_s=0.0)
    other = new_server(flags, tokenizer)
    other.pod.tickets = live_server.pod.tickets
    other.pod.loaded = LoadedModel(other.engine, tokenizer, splits_reasoning=False)
    await other.start()
    status, refusal = await post(other, CHAT, resumed, mode="resume")
    await other.stop()
    assert (status, json.loads(refusal)["error"]["code"]) == (409, "other_answer")
    assert other.engine.requests == []
    assert (await post(live_server, CHAT, resumed, mode="resume"))[0] == 200


async def test_a_prompt_that_tells_the_time_stays_the_same(
    live_server: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    """A stream resumed after midnight went on with another day's prompt."""
    (tmp_path / "clock.jinja").write_text("{{ strftime_now('%H:%M:%S') }}{{ messages[0].content }}")
    clock = Tokenizer(str(tiny_folder), chat_template=str(tmp_path / "clock.jinja"))
    live_server.pod.loaded = LoadedModel(live_server.engine, clock, splits_reasoning=True)
    body = json.dumps(MESSAGES | {"seed": 1}).encode()
    _, records = groups((await post(live_server, CHAT, body))[1])
    created = json.loads(records[0])["origin"]["created"]
    await asyncio.sleep(created + 1 - time.time())
    resumed = envelope(body, b",".join(records[:3]), elapsed_s=0.0)
    assert (await post(live_server, CHAT, resumed, mode="resume"))[0] == 200
    first, second = live_server.engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids
    prompt = datetime.fromtimestamp(created).strftime("%H:%M:%S") + "hi"
    assert clock.decode(first.prompt_token_ids) == prompt


async def test_a_prompt_that_changed_all_the_same_is_refused(live_server: Server) -> None:
    body = json.dumps(MESSAGES | {"seed": 1}).encode()
    _, records = groups((await post(live_server, CHAT, body))[1])
    other = json.dumps(MESSAGES | {"seed": 1, "messages": [{"role": "user", "content": "ho"}]}).encode()
    resumed = envelope(other, b",".join(records[:3]), elapsed_s=0.0)
    status, refusal = await post(live_server, CHAT, resumed, mode="resume")
    assert (status, b"other tokens" in refusal) == (409, True)


async def test_records_may_be_larger_than_any_body(live_server: Server) -> None:
    body = json.dumps(MESSAGES).encode()
    records = await with_origin(live_server, body, b'{"outputs":[[5]],"origin":%ORIGIN%}')
    records += b',{"outputs":[[5]]}' * 500_000
    status, refusal = await post(live_server, CHAT, envelope(body, records, elapsed_s=0.0), mode="resume")
    assert (status, b"has ended" in refusal) == (400, True)


async def test_a_dead_engine_ends_a_live_stream_without_a_word(live_server: Server) -> None:
    live_server.say("Hello, world.")
    live_server.engine.bug = EngineDeadError("the engine stopped")
    body = json.dumps(MESSAGES).encode()
    status, stream = await post(live_server, CHAT, body)
    assert (status, b"error" in stream, stream.endswith(END)) == (200, False, False)
    _, told = await post(live_server, CHAT, body, mode=None)
    assert b'"code":"engine_dead"' in told


async def test_a_bug_is_told_and_not_tried_again_elsewhere(live_server: Server) -> None:
    live_server.say("Hello, world.")
    live_server.engine.bug = RuntimeError("a bug")
    _, stream = await post(live_server, CHAT, json.dumps(MESSAGES).encode())
    assert stream.endswith(END)
    assert b'"code":"internal_error"' in stream


async def test_a_client_that_leaves_a_resumed_stream_aborts_it(live_server: Server) -> None:
    body = json.dumps(MESSAGES | {"seed": 1}).encode()
    _, records = groups((await post(live_server, CHAT, body))[1])
    live_server.engine.gate = asyncio.Event()
    resumed = envelope(body, b",".join(records[:3]), elapsed_s=0.0)
    asking = asyncio.create_task(post(live_server, CHAT, resumed, mode="resume"))
    while not live_server.engine.began.empty():
        live_server.engine.began.get_nowait()
    began = await asyncio.wait_for(live_server.engine.began.get(), 20)
    asking.cancel()
    assert await asyncio.wait_for(live_server.engine.aborted.get(), 20) == began
