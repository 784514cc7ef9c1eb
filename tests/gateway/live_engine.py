"""A fake decode pod with live streams: an answer of numbered words, one record each, that can break off anywhere."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from gateway.fake_engine import FakeEngine, word
from tandem_contract import headers
from tandem_contract.live_stream import END, comment, verify_stream


@dataclass
class LiveEngine(FakeEngine):
    ticket_key: bytes = b"k" * 32
    break_after: list[int] = field(default_factory=list)
    """For each stream in turn: words of its own after which it breaks off. Engines may share the list."""
    cut_at_end: bool = False
    """Whether the connection breaks as soon as all is said."""
    hold_at_end: asyncio.Event | None = None
    """Streams wait for it once all is said."""
    freeze_after: int | None = None
    """Words of its own after which a stream falls silent, in the middle of a group, until `thawed`."""
    break_thawed: bool = False
    """Whether such a stream breaks off then."""
    resumed_from: list[int] = field(default_factory=list)
    """Records that came with each resumed stream."""
    told_elapsed: list[float] = field(default_factory=list)
    """Seconds since the client asked, as each resumed stream was told."""
    resumed_in: list[str] = field(default_factory=list)
    """The `traceparent` of each resumed stream; engines may share the list."""
    frozen: asyncio.Event = field(default_factory=asyncio.Event)
    thawed: asyncio.Event = field(default_factory=asyncio.Event)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        mode, body = request.headers.get(headers.STREAM), await request.read()
        start = 0
        if mode is not None:
            verify_stream(mode, request.headers[headers.SIGNATURE], body, [self.ticket_key])  # type: ignore[arg-type]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", headers.STREAM: "live"})
        if mode == "resume":
            envelope = json.loads(body)
            records = envelope["records"]
            assert records == list(range(len(records)))
            self.told_elapsed.append(envelope["elapsed_s"])
            start = len(records)
            self.resumed_from.append(start)
            self.resumed_in.append(request.headers.get("traceparent", ""))
        await response.prepare(request)
        breaks = self.break_after.pop(0) if self.break_after else None
        for own, index in enumerate(range(start, self.words)):
            if own == breaks:
                # Half a group: an event without its record.
                await response.write(word(index))
                assert request.transport is not None
                request.transport.close()
                return response
            group = word(index) + comment(str(index).encode())
            if own == self.freeze_after:
                await response.write(group[:-3])
                group = group[-3:]
                self.frozen.set()
                await self.thawed.wait()
                if self.break_thawed:
                    assert request.transport is not None
                    request.transport.close()
                    return response
            await response.write(group)
            if self.interval:
                await asyncio.sleep(self.interval)
        await response.write(b"data: [DONE]\n\n" + END)
        if self.hold_at_end is not None:
            await self.hold_at_end.wait()
        if self.cut_at_end:
            assert request.transport is not None
            request.transport.close()
        return response

    def _streams(self, request: web.Request, body: Any) -> bool:
        return request.headers.get(headers.STREAM) == "resume" or super()._streams(request, body)
