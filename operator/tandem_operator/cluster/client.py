"""A small client of the Kubernetes API: plain HTTP and JSON, with kopf's credentials (ADR 0010)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import kopf
import orjson

from tandem_operator.cluster.field_owners import as_applied
from tandem_operator.cluster.kinds import Kind
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.names import MANAGER

CREDENTIALS_S = 60.0
"""Service-account tokens are rewritten by the kubelet well before they expire; so often the file is read again."""
TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)
WATCH_S = 240
"""The server ends a watch then, and the next one goes on from there."""
SILENT_S = 150.0
"""A watch that says nothing for so long, not even a bookmark (one a minute), has lost its other end."""
LONGEST_EVENT = 4 * 2**20
"""Bytes; etcd takes no object above 1.5 MiB."""

Wrote = Callable[[str, str], None]
"""Called with kind and verb of each write that succeeded."""


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


class NoCredentials(RuntimeError):
    """Neither a service account nor a kubeconfig is at hand."""


def login() -> kopf.ConnectionInfo:
    """In a pod its service account, else the kubeconfig. Raises `NoCredentials`."""
    settings = kopf.OperatorSettings()
    log = logging.getLogger(__name__)
    found = kopf.login_with_service_account(settings=settings, logger=log) or kopf.login_with_kubeconfig(
        settings=settings, logger=log
    )
    if found is None:
        raise NoCredentials("no credentials: run in a pod with a service account, or set KUBECONFIG")
    return found


class Client:
    def __init__(self, *, wrote: Wrote, login: Callable[[], kopf.ConnectionInfo] = login) -> None:
        self._wrote = wrote
        self._login = login
        self._info = login()
        self._until = time.monotonic() + CREDENTIALS_S
        self._tls = self._info.as_ssl_context()
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
        found = await self._request("GET", kind.collection(namespace), query)
        return found["items"], found["metadata"]["resourceVersion"]

    async def pages(self, kind: Kind, namespace: str, limit: int, **query: str) -> AsyncIterator[list[Manifest]]:
        """The items, at most `limit` at a time."""
        query["limit"] = str(limit)
        while True:
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

    async def claim(self, kind: Kind, current: Manifest) -> None:
        """Has what we created count as applied. Raises `ApiError` 409 when someone changed it since it was read."""
        meta = current["metadata"]
        managed = as_applied(meta.get("managedFields", []))
        if managed is None:
            return
        path = kind.path(meta["namespace"], meta["name"])
        patch = [
            {"op": "replace", "path": "/metadata/managedFields", "value": managed},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        ]
        await self._request("PATCH", path, {"fieldManager": MANAGER}, patch, "application/json-patch+json")
        self._wrote(kind.kind, "claim")

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
        if time.monotonic() >= self._until:
            self._info, self._until = self._login(), time.monotonic() + CREDENTIALS_S
        headers = {**self._info.as_http_headers(), "Content-Type": content_type}
        data = None if body is None else orjson.dumps(body)
        url = self._info.server.rstrip("/") + path
        try:
            async with self._session.request(
                method, url, params=query, data=data, headers=headers, timeout=timeout, ssl=self._tls
            ) as answer:
                if answer.status == 401:
                    # A token that was rotated before its time: the next request reads it anew.
                    self._until = time.monotonic()
                if answer.status >= 400:
                    raise await _error(answer)
                yield answer
        except aiohttp.ClientConnectorCertificateError:
            # The cluster has another authority by now, and the kubelet has brought its certificate or soon will.
            self._tls = self._info.as_ssl_context()
            raise


async def _error(answer: aiohttp.ClientResponse) -> ApiError:
    text = await answer.text()
    try:
        said = orjson.loads(text)
        return ApiError(answer.status, said.get("reason", ""), said.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(answer.status, answer.reason or "", text[:500])
