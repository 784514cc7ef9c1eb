"""The raw events of /v1/responses."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def events_of(http: aiohttp.ClientSession, **fields: Any) -> list[dict[str, Any]]:
    """Each checked against the client's types."""
    body = {"model": "tiny", "input": "Say hello.", "stream": True, **fields}
    async with http.post("/v1/responses", json=body) as response:
        assert response.status == 200, await response.text()
        raw = (await response.read()).decode()
    events = []
    for block in raw.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        STREAM_EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events
