"""A small client of the Kubernetes API: plain HTTP and JSON, with kopf's credentials (ADR 0010)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import kopf

from tandem_operator.cluster.kinds import Kind
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.names import MANAGER

CREDENTIALS_S = 60.0
"""Service-account tokens are rewritten by the kubelet well before they expire; so often the file is read again."""
TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)

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
        # An apply with a field that its kind does not have is answered with a bare 500.
        return self.status in (400, 403, 422) or "field not declared in schema" in self.message


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
        self._session = aiohttp.ClientSession(
            timeout=TIMEOUT, connector=aiohttp.TCPConnector(ssl=self._info.as_ssl_context(), limit=32)
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

    async def list(self, kind: Kind, namespace: str | None, **query: str) -> list[Manifest]:
        found = await self._request("GET", kind.collection(namespace), query)
        items: list[Manifest] = found["items"]
        return items

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

    async def scale(self, kind: Kind, current: Manifest, replicas: int) -> None:
        """Raises `ApiError` 409 when someone changed the object since `current` was read."""
        meta = current["metadata"]
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": {"replicas": replicas}}
        path = kind.path(meta["namespace"], meta["name"]) + "/scale"
        await self._request("PATCH", path, {"fieldManager": f"{MANAGER}-scale"}, patch, "application/merge-patch+json")
        self._wrote(kind.kind, "scale")

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

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Manifest:
        if time.monotonic() >= self._until:
            self._info, self._until = self._login(), time.monotonic() + CREDENTIALS_S
        headers = {**self._info.as_http_headers(), "Content-Type": content_type}
        data = None if body is None else aiohttp.JsonPayload(body, content_type=content_type)
        async with self._session.request(
            method, self._info.server.rstrip("/") + path, params=query, data=data, headers=headers
        ) as answer:
            if answer.status == 401:
                # A token that was rotated before its time: the next request reads it anew.
                self._until = time.monotonic()
            if answer.status >= 400:
                raise await _error(answer)
            found: Manifest = await answer.json()
            return found


async def _error(answer: aiohttp.ClientResponse) -> ApiError:
    try:
        said = await answer.json(content_type=None)
        return ApiError(answer.status, said.get("reason", ""), said.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(answer.status, answer.reason or "", (await answer.text())[:500])
