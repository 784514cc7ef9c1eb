"""The part of a Kubernetes API server that serves pods: list, watch with bookmarks, 410 Gone, bearer tokens."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tandem_contract import labels


@dataclass
class FakeKubernetes:
    """Pods of namespace `ns`. Selectors are recorded, not evaluated."""

    tokens: set[str] = field(default_factory=lambda: {"token"})
    lists: int = 0
    watches: list[dict[str, str]] = field(default_factory=list)
    """Query of each watch."""
    mute: bool = False
    """Watches stay open and silent, past their own timeout, like a dead connection."""
    ends_at_once: bool = False
    """Watches end in good order before they have begun."""
    refuses: int | None = None
    """Status of every answer to a watch."""
    tls: ssl.SSLContext | None = None
    url: str = ""

    def __post_init__(self) -> None:
        self._version = 100
        self._pods: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._changed = asyncio.Condition()
        self._open: set[web.StreamResponse] = set()

    async def __aenter__(self) -> FakeKubernetes:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/ns/pods", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls).start()
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def put(self, name: str, ip: str | None, role: str = "decode", **meta: Any) -> None:
        kind = "MODIFIED" if name in self._pods else "ADDED"
        padding = {"managedFields": ["x" * 200_000]}
        self._pods[name] = {
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": {labels.ROLE: role}, **meta, **padding},
            "status": {"phase": "Running", **({"podIP": ip} if ip else {})},
        }
        await self._emit(kind, self._pods[name])

    async def delete(self, name: str) -> None:
        await self._emit("DELETED", self._pods.pop(name))

    async def bookmark(self) -> None:
        await self._emit("BOOKMARK", {"kind": "Pod", "metadata": {}})

    async def fail_watches(self, code: int) -> None:
        await self._emit("ERROR", {"kind": "Status", "code": code, "message": "too old", "metadata": {}})

    def cut_connections(self) -> None:
        for response in self._open:
            transport = response._req.transport if response._req else None
            if transport is not None:
                transport.abort()

    async def _emit(self, kind: str, thing: dict[str, Any]) -> None:
        async with self._changed:
            self._version += 1
            thing = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self._version)}}
            self._events.append((self._version, {"type": kind, "object": thing}))
            self._changed.notify_all()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if request.query.get("watch") != "1":
            self.lists += 1
            listing = {"metadata": {"resourceVersion": str(self._version)}, "items": list(self._pods.values())}
            return web.json_response(listing)
        self.watches.append(dict(request.query))
        if self.refuses is not None:
            return web.json_response({"kind": "Status", "code": self.refuses}, status=self.refuses)
        return await self._watch(request)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._open.add(response)
        at = int(request.query["resourceVersion"])
        try:
            if self.ends_at_once:
                return response
            if self.mute:
                await asyncio.Event().wait()
            async with asyncio.timeout(float(request.query["timeoutSeconds"])), self._changed:
                while True:
                    for version, event in [known for known in self._events if known[0] > at]:
                        await response.write(json.dumps(event).encode() + b"\n")
                        at = version
                    await self._changed.wait()
        except TimeoutError:
            return response
        finally:
            self._open.discard(response)
