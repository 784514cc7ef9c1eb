"""An API server in this process: storage, list, watch, server-side apply by field manager.

Over real HTTP. Faithful in what the operator relies on: resourceVersion conflicts, generations, what apply removes,
cascading deletion, what becomes of unknown fields (of affinities). No admission, no other schemas.
"""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
from aiohttp import web
from support.kube_objects import (
    KINDS,
    PLURALS,
    Object,
    merged,
    selected,
    take_out,
    told,
    unknown_field,
    without_version,
)

CONDITIONS = ("uid", "resourceVersion")


class FakeCluster:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.absent = {"podmonitors"}
        """Plurals that this cluster does not serve."""
        self.objects: dict[tuple[str, str, str], Object] = {}
        """By plural, namespace, name."""
        self.writes: Counter[tuple[str, str]] = Counter()
        """By method and plural, as clients sent them; Leases are left out."""
        self.asked: set[tuple[str, str, str]] = set()
        """Verb, API group, and resource (or resource/subresource) of all requests, as authorization sees them."""
        self.refuse: dict[tuple[str, str], int] = {}
        """Status with which the next request of that method and plural is answered."""
        self.forbidden: set[str] = set()
        """Namespaces that nobody may list or watch."""
        self.locked_out = False
        """Nobody's token is taken for a list or a watch."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """By verb and plural, watches as they begin."""
        self.forgotten: set[str] = set()
        """Plurals of which a watch's next event is that its version is too old."""
        self.deaf: set[str] = set()
        """Plurals whose watches tell nothing any more."""
        self.writes_left: int | None = None
        """After so many writes nothing is answered any more; the last one is made all the same."""
        self.stuck: set[str] = set()
        """Pods of a lost node: terminating for good, and no other is made in their place."""
        self.amid: dict[tuple[str, str], Callable[[], Awaitable[None]]] = {}
        """Done before the next request of that method and plural is served: what happens amid a reconcile."""
        self.url = ""
        self._tls = tls
        self._version = 100
        self._created: dict[tuple[str, str, str], Object] = {}
        """As it was posted: an apply takes nothing of it out, until it is claimed."""
        self._applied: dict[tuple[tuple[str, str, str], str], Object] = {}
        self._changed = asyncio.Condition()
        self._log: list[tuple[int, str, Object | None, Object | None]] = []
        """Version, plural, and the object before and after: None where there was, or is, none."""

    async def __aenter__(self) -> FakeCluster:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/version", self._json({"major": "1", "minor": "34"}))
        app.router.add_get("/api", self._json({"versions": ["v1"]}))
        app.router.add_get("/apis", self._groups)
        app.router.add_get("/api/v1", self._resources)
        app.router.add_get("/apis/{group}/{version}", self._resources)
        for prefix in ("/api/{version}", "/apis/{group}/{version}"):
            app.router.add_get(f"{prefix}/{{plural}}", self._list)
            collection = f"{prefix}/namespaces/{{namespace}}/{{plural}}"
            app.router.add_get(collection, self._list)
            app.router.add_post(collection, self._post)
            for subresource in ("", "/status", "/scale"):
                app.router.add_route("*", f"{collection}/{{name}}{subresource}", self._object)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def hang_up(self) -> None:
        """Ends all connections, as an API server that restarts."""
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()

    def login(self) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=self.url)

    # What tests do and look at

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        return self.objects.get((PLURALS[kind], namespace, name))

    def all(self, kind: str) -> list[Object]:
        return [thing for (plural, _, _), thing in self.objects.items() if plural == PLURALS[kind]]

    async def put(self, thing: Object) -> Object:
        """Creates or replaces, as a user would; a changed spec is a new generation."""
        meta = thing["metadata"]
        key = (PLURALS[thing["kind"]], meta.get("namespace", "default"), meta["name"])
        return await self._store(key, copy.deepcopy(thing))

    async def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        await self.remove((PLURALS[kind], namespace, name))

    # The protocol

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        info = request.match_info
        if self.writes_left == 0:
            return _status(503, "ServiceUnavailable")
        if self.writes_left is not None and request.method != "GET":
            self.writes_left -= 1
        if plural := info.get("plural"):
            _, _, subresource = request.path.partition(f"/{plural}/{info.get('name', '')}/")
            thing = f"{plural}/{subresource}" if subresource and "name" in info else plural
            verbs = self._verbs(request)
            self.asked |= {(verb, info.get("group", ""), thing) for verb in verbs}
            self.requests.update((verb, plural) for verb in verbs)
            if happens := self.amid.pop((request.method, plural), None):
                await happens()
        answer: web.StreamResponse = await handler(request)
        return _status(503, "ServiceUnavailable") if self.writes_left == 0 else answer

    def _verbs(self, request: web.Request) -> set[str]:
        info = request.match_info
        if request.method == "GET":
            return {"get"} if "name" in info else {"watch"} if "watch" in request.query else {"list"}
        if request.content_type == "application/apply-patch+yaml":
            # An apply that makes the object needs both rights.
            there = (info["plural"], info["namespace"], info["name"]) in self.objects
            return {"patch"} if there else {"patch", "create"}
        return {{"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]}

    async def _object(self, request: web.Request) -> web.StreamResponse:
        info = request.match_info
        key = (info["plural"], info["namespace"], info["name"])
        if refused := self._refusal(request):
            return refused
        current = self.objects.get(key)
        if request.method == "GET":
            return web.json_response(current) if current else _status(404, "NotFound")
        body = await request.json() if request.can_read_body else {}
        if key[0] != "leases":
            self.writes[request.method, key[0]] += 1
        if request.method == "DELETE":
            if current is None:
                return _status(404, "NotFound")
            if not body.get("preconditions", {}).items() <= current["metadata"].items():
                return _status(409, "Conflict")
            await self.remove(key)
            return _status(200, "Success")
        if request.content_type == "application/apply-patch+yaml":
            if unknown := unknown_field(body):
                # As it is in 1.34: no reason, and not the client's fault.
                return _status(500, "", f"failed to create typed patch object: {unknown}: field not declared in schema")
            # A subresource is never made; a uid or resourceVersion in what is applied is a condition.
            if current is None and request.path.endswith("/status"):
                return _status(404, "NotFound")
            there = current["metadata"] if current else {}
            if any(there.get(name) != value for name in CONDITIONS if (value := body["metadata"].get(name))):
                return _status(409, "Conflict")
            return web.json_response(await self._apply(key, body, request.query["fieldManager"]))
        if current is None:
            return _status(404, "NotFound")
        if request.content_type == "application/json-patch+json":
            return await self._claim(key, current, {change["path"]: change["value"] for change in body})
        version = body.get("metadata", {}).get("resourceVersion")
        if version and version != current["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        new = merged(current, body) if request.method == "PATCH" else body
        stored = await self._store(key, new)
        if request.path.endswith("/scale"):
            return web.json_response({"kind": "Scale", "metadata": stored["metadata"], "spec": stored["spec"]})
        return web.json_response(stored)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = (request.match_info["plural"], request.match_info["namespace"], body["metadata"]["name"])
        if key[0] != "leases":
            self.writes["POST", key[0]] += 1
        if refused := self._refusal(request):
            return refused
        if key in self.objects:
            return _status(409, "AlreadyExists")
        if unknown := unknown_field(body):
            if request.query.get("fieldValidation") == "Strict":
                return _status(400, "BadRequest", f'strict decoding error: unknown field "{unknown[1:]}"')
            del body["spec"]["template"]["spec"]["affinity"][unknown.rpartition(".")[2]]
        manager = request.query.get("fieldManager", "")
        body["metadata"]["managedFields"] = [{"manager": manager, "operation": "Update"}]
        self._created[key] = copy.deepcopy(body)
        return web.json_response(await self._store(key, body), status=201)

    async def _claim(self, key: tuple[str, str, str], current: Object, changes: dict[str, Any]) -> web.Response:
        """Who owns which field is written over: what was created counts as applied."""
        if changes["/metadata/resourceVersion"] != current["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        (entry,) = changes["/metadata/managedFields"]
        assert entry["operation"] == "Apply"
        if key in self._created:
            self._applied[key, entry["manager"]] = self._created.pop(key)
        meta = {**current["metadata"], "managedFields": [entry]}
        return web.json_response(await self._store(key, {**current, "metadata": meta}))

    async def _apply(self, key: tuple[str, str, str], body: Object, manager: str) -> Object:
        before = self._applied.get((key, manager), {})
        current = copy.deepcopy(self.objects.get(key, {}))
        take_out(current, before, body)
        self._applied[key, manager] = copy.deepcopy(body)
        return await self._store(key, merged(current, body))

    async def _store(self, key: tuple[str, str, str], thing: Object) -> Object:
        old = self.objects.get(key)
        meta = thing["metadata"]
        meta.setdefault("namespace", key[1])
        self._version += 1
        meta["uid"] = old["metadata"]["uid"] if old else meta.get("uid", f"uid-{self._version}")
        # A second later with each write, so that times sort as versions.
        hours, minutes = divmod(self._version // 60, 60)
        made = f"2026-01-01T{hours:02}:{minutes:02}:{self._version % 60:02}Z"
        meta["creationTimestamp"] = old["metadata"]["creationTimestamp"] if old else made
        generation = old["metadata"]["generation"] if old else 0
        meta["generation"] = generation + (old is None or old.get("spec") != thing.get("spec"))
        api_version, kind = KINDS[key[0]]
        thing |= {"apiVersion": api_version, "kind": kind}
        if old is not None and without_version(old) == without_version(thing):
            return old
        meta["resourceVersion"] = str(self._version)
        await self._emit("MODIFIED" if old else "ADDED", key, thing)
        return thing

    async def remove(self, key: tuple[str, str, str]) -> None:
        gone = self.objects[key]
        self._version += 1
        await self._emit("DELETED", key, gone)
        uid = gone["metadata"]["uid"]
        for other, thing in list(self.objects.items()):
            if any(owner.get("uid") == uid for owner in thing["metadata"].get("ownerReferences", [])):
                await self.remove(other)

    async def _emit(self, event: str, key: tuple[str, str, str], thing: Object) -> None:
        before = self.objects.get(key)
        if event == "DELETED":
            del self.objects[key]
            self._applied = {known: body for known, body in self._applied.items() if known[0] != key}
        else:
            self.objects[key] = thing
        after = None if event == "DELETED" else copy.deepcopy(thing)
        self._log.append((self._version, key[0], copy.deepcopy(before), after))
        # Only now: no one may see the new version without the object.
        async with self._changed:
            self._changed.notify_all()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if self.locked_out:
            return _status(401, "Unauthorized")
        if request.match_info.get("namespace") in self.forbidden:
            return _status(403, "Forbidden")
        if request.match_info["plural"] in self.absent:
            return _status(404, "NotFound")
        if "watch" in request.query:
            return await self._watch(request)
        if refused := self._refusal(request):
            return refused
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace")
        found = [
            thing
            for (kind, where, _), thing in sorted(self.objects.items(), key=lambda entry: entry[0])
            if kind == plural and namespace in (None, where) and selected(thing, request.query)
        ]
        first, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", len(found) or 1))
        meta = {"resourceVersion": str(self._version)}
        if first + limit < len(found):
            meta["continue"] = str(first + limit)
        return web.json_response({"metadata": meta, "items": found[first : first + limit]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", "0"))
        response = web.StreamResponse()
        await response.prepare(request)
        here, done = request.match_info["plural"], 0
        while True:
            async with self._changed:
                if here in self.forgotten:
                    self.forgotten.discard(here)
                    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                    return response
                for version, plural, before, after in self._log[done:]:
                    done += 1
                    if version > since and plural == here and plural not in self.deaf:
                        for event in told(version, before, after, request.query):
                            await response.write(json.dumps(event).encode() + b"\n")
                if done == len(self._log):
                    await self._changed.wait()

    def _refusal(self, request: web.Request) -> web.Response | None:
        status = self.refuse.pop((request.method, request.match_info["plural"]), None)
        return _status(status, "Refused") if status else None

    async def _groups(self, request: web.Request) -> web.Response:
        served = {version for plural, (version, _) in KINDS.items() if plural not in self.absent}
        versions = sorted(version for version in served if "/" in version)
        groups = [
            {"name": v.split("/")[0], "versions": [{"groupVersion": v, "version": v.split("/")[1]}],
             "preferredVersion": {"groupVersion": v, "version": v.split("/")[1]}}
            for v in versions
        ]  # fmt: skip
        return web.json_response({"groups": groups})

    async def _resources(self, request: web.Request) -> web.Response:
        group = request.match_info.get("group")
        here = f"{group}/{request.match_info['version']}" if group else "v1"
        found = [
            {"name": plural, "kind": kind, "singularName": kind.lower(), "namespaced": True,
             "verbs": ["list", "watch", "patch", "get"]}
            for plural, (version, kind) in KINDS.items()
            if version == here and plural not in self.absent
        ]  # fmt: skip
        if not found:
            return _status(404, "NotFound")
        return web.json_response({"groupVersion": here, "resources": found})

    def _json(self, body: Object) -> Any:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(body)

        return answer


def _status(code: int, reason: str, message: str = "") -> web.Response:
    status = {"kind": "Status", "code": code, "reason": reason, "message": message or reason}
    return web.json_response(status, status=code)
