"""A small client of the Kubernetes API: plain HTTP and JSON, with kopf's credentials (ADR 0010)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import aiohttp
import orjson

from tandem_operator.cluster.credentials import Credentials, Login, login
from tandem_operator.cluster.field_owners import as_applied
from tandem_operator.cluster.kinds import Kind
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.names import MANAGER

TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)
WATCH_S = 240
"""The server ends a watch then, and the next one goes on from there."""
SILENT_S = 150.0
"""A watch that says nothing for so long, not even a bookmark (one a minute), has lost its other end."""
LONGEST_EVENT = 4 * 2**20
"""Bytes; etcd takes no object above 1.5 MiB."""

Wrote = Callable[[str, str], None]
"""Called with kind and verb of each write that succeeded."""
Unread = Callable[[str, str], None]
"""Called with kind and reason of each list or watch that failed."""


class ApiError(RuntimeError):
    """The API server refused."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def lasts(self) -> bool:
        """Whether waiting alone does not change the answer: an invalid affinity, a quota, a missing right."""
        # An apply with a field that its kind does not have, and a webhook that does not answer, are bare 500s.
        bare = ("field not declared in schema", "failed calling webhook")
        return self.status in (400, 403, 422) or any(said in self.message for said in bare)


def reason_of(error: Exception) -> str:
    """One word for a metric: the API server's own, else the name of the error."""
    return error.reason if isinstance(error, ApiError) and error.reason else type(error).__name__


class Client:
    def __init__(self, *, wrote: Wrote, unread: Unread = lambda kind, reason: None, login: Login = login) -> None:
        """Raises `NoCredentials`, `OSError`."""
        self._wrote = wrote
        self._unread = unread
        self._credentials = Credentials(login)
        self._session = aiohttp.ClientSession(
            timeout=TIMEOUT,
            # Unlimited: watches hold theirs for minutes, the workers bound the rest.
            connector=aiohttp.TCPConnector(limit=0),
            read_bufsize=LONGEST_EVENT // 2,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        try:
            return await self._request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def snapshot(self, kind: Kind, namespace: str | None, **query: str) -> tuple[list[Manifest], str]:
        """The items, and the resourceVersion from which a watch goes on."""
        with self._reading(kind):
            found = await self._request("GET", kind.collection(namespace), query)
        return found["items"], found["metadata"]["resourceVersion"]

    async def pages(self, kind: Kind, namespace: str, limit: int, **query: str) -> AsyncIterator[list[Manifest]]:
        """The items, at most `limit` at a time."""
        query["limit"] = str(limit)
        while True:
            with self._reading(kind):
                found = await self._request("GET", kind.collection(namespace), query)
            yield found["items"]
            if not found["metadata"].get("continue"):
                return
            query["continue"] = found["metadata"]["continue"]

    async def watch(self, kind: Kind, namespace: str | None, version: str, **query: str) -> AsyncIterator[Manifest]:
        """Events after `version`, bookmarks among them, until the server has had enough of it.

        Raises `ApiError` 410 when `version` is too old, `TimeoutError` when the stream has fallen silent.
        """
        query |= {
            "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S),
        }  # fmt: skip
        patience = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=SILENT_S)
        with self._reading(kind):
            async with self._open("GET", kind.collection(namespace), query, timeout=patience) as answer:
                async for line in answer.content:
                    if not line.endswith(b"\n"):
                        raise aiohttp.ClientPayloadError("the watch ended amid an event")
                    event: Manifest = orjson.loads(line)
                    if event["type"] == "ERROR":
                        told = event["object"]
                        raise ApiError(told.get("code", 500), told.get("reason", ""), told.get("message", ""))
                    yield event

    async def serves(self, kind: Kind) -> bool:
        """Whether the cluster has this kind at all."""
        try:
            found = await self._request("GET", f"/apis/{kind.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == kind.plural for resource in found["resources"])

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        path = kind.collection(manifest["metadata"]["namespace"])
        # Unless it is asked to be strict, the server drops fields that it does not know without a word.
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        made = await self._request("POST", path, query, manifest)
        self._wrote(kind.kind, "create")
        return made

    async def apply(self, kind: Kind, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Server-side apply: fields we own and no longer send are removed, fields of others stay."""
        meta = manifest["metadata"]
        path = kind.path(meta["namespace"], meta["name"]) + subresource
        query = {"fieldManager": MANAGER + subresource.replace("/", "-"), "force": "true"}
        applied = await self._request("PATCH", path, query, manifest, "application/apply-patch+yaml")
        self._wrote(kind.kind, "apply")
        return applied

    async def claim(self, kind: Kind, current: Manifest) -> Manifest:
        """Has what we created count as applied; the object as it is then. Raises `ApiError` 409 when someone changed it
        since `current` was read."""
        meta = current["metadata"]
        managed = as_applied(meta.get("managedFields", []))
        if managed is None:
            return current
        path = kind.path(meta["namespace"], meta["name"])
        patch = [
            {"op": "replace", "path": "/metadata/managedFields", "value": managed},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        ]
        claimed = await self._request("PATCH", path, {"fieldManager": MANAGER}, patch, "application/json-patch+json")
        self._wrote(kind.kind, "claim")
        return claimed

    async def scale(self, kind: Kind, current: Manifest, replicas: int) -> Manifest:
        """The object as it is then. Raises `ApiError` 409 when someone changed it since `current` was read."""
        meta = current["metadata"]
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": {"replicas": replicas}}
        path = kind.path(meta["namespace"], meta["name"]) + "/scale"
        query = {"fieldManager": f"{MANAGER}-scale"}
        scale = await self._request("PATCH", path, query, patch, "application/merge-patch+json")
        self._wrote(kind.kind, "scale")
        now = {"resourceVersion": scale["metadata"]["resourceVersion"]}
        return {**current, "metadata": meta | now, "spec": current["spec"] | {"replicas": replicas}}

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Raises `ApiError` 409 when the object's resourceVersion is no longer the one in `manifest`."""
        meta = manifest["metadata"]
        return await self._request("PUT", kind.path(meta["namespace"], meta["name"]), None, manifest)

    async def delete(self, kind: Kind, current: Manifest) -> None:
        """Raises `ApiError` 409 when someone changed the object since `current` was read."""
        meta = current["metadata"]
        seen = {key: meta[key] for key in ("uid", "resourceVersion")}
        options = {"preconditions": seen, "propagationPolicy": "Background"}
        try:
            await self._request("DELETE", kind.path(meta["namespace"], meta["name"]), None, options)
        except ApiError as error:
            if error.status != 404:
                raise
        self._wrote(kind.kind, "delete")

    async def list(self, kind: Kind, namespace: str | None, **query: str) -> list[Manifest]:
        return (await self.snapshot(kind, namespace, **query))[0]

    @contextlib.contextmanager
    def _reading(self, kind: Kind) -> Iterator[None]:
        try:
            yield
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            # A version that is too old is how watches end that had nothing to tell for long.
            if not (isinstance(error, ApiError) and error.status == 410):
                self._unread(kind.kind, reason_of(error))
            raise

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Manifest:
        async with self._open(method, path, query, body, content_type) as answer:
            found: Manifest = orjson.loads(await answer.read())
            return found

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout = TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        info, tls = self._credentials.current()
        headers = {**info.as_http_headers(), "Content-Type": content_type}
        data = None if body is None else orjson.dumps(body)
        url = info.server.rstrip("/") + path
        try:
            async with self._session.request(
                method, url, params=query, data=data, headers=headers, timeout=timeout, ssl=tls
            ) as answer:
                if answer.status == 401:
                    self._credentials.refused()
                if answer.status >= 400:
                    raise await _error(answer)
                yield answer
        except aiohttp.ClientConnectorCertificateError:
            # The cluster has another authority by now, and the kubelet has brought its certificate or soon will.
            self._credentials.refused()
            raise


async def _error(answer: aiohttp.ClientResponse) -> ApiError:
    text = await answer.text()
    try:
        said = orjson.loads(text)
        return ApiError(answer.status, said.get("reason", ""), said.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(answer.status, answer.reason or "", text[:500])
