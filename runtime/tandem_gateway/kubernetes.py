"""Endpoints from Kubernetes: lists and watches an InferenceService's pods through the API server.

Plain HTTP against the documented protocol (kubernetes.io/docs/reference/using-api/api-concepts, "Efficient
detection of changes"): list, watch from its resourceVersion with bookmarks, list again when the server refuses that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import orjson
from tandem_contract import labels, ports
from tandem_contract.reloading import ReloadingFile
from tandem_contract.status import ROLES, Role

from tandem_gateway.endpoints import Endpoint, Update

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
WATCH_SECONDS = 120
"""The server ends each watch after this; a connection silent for longer is dead and is opened anew."""
WATCH_GRACE_S = 10.0
MIN_WATCH_S = 1.0
"""A watch that ends sooner is no end of a watch but a failure to begin one."""
MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0


class KubernetesError(RuntimeError):
    """The API server refused or answered nonsense."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    url: str
    token: ReloadingFile[str]
    """Service-account tokens expire after an hour; kubelet rewrites the file."""
    tls: ReloadingFile[ssl.SSLContext] | None
    """Clusters get new authorities; kubelet rewrites that file too."""

    @classmethod
    def in_cluster(cls, environ: Mapping[str, str], folder: str = SERVICE_ACCOUNT) -> ApiServer:
        """Raises `ValueError` outside a pod, `OSError` without a mounted service account."""
        try:
            host, port = environ["KUBERNETES_SERVICE_HOST"], environ["KUBERNETES_SERVICE_PORT"]
        except KeyError as missing:
            raise ValueError(f"--kubernetes-service works only inside a cluster: {missing} is not set") from missing
        host = f"[{host}]" if ":" in host else host
        token = ReloadingFile(f"{folder}/token", str.strip)
        return cls(f"https://{host}:{port}", token, ReloadingFile(f"{folder}/ca.crt", _trusting))


def _trusting(authorities: str) -> ssl.SSLContext:
    """`authorities`: certificates in PEM. Raises `ValueError`, `OSError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authorities)
    return context


class WatchedEndpoints:
    """Keeps the last known endpoints while the API server is away."""

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        service: str,
        *,
        watch_seconds: int = WATCH_SECONDS,
        watch_grace: float = WATCH_GRACE_S,
    ) -> None:
        self._server = server
        self._path = f"{server.url}/api/v1/namespaces/{namespace}/pods"
        self._selector = labels.service_selector(service)
        self._watch_seconds = watch_seconds
        self._silence = watch_seconds + watch_grace
        self._pods: dict[str, Endpoint] = {}
        self._version = ""

    async def run(self, update: Update) -> None:
        loop = asyncio.get_running_loop()
        backoff = MIN_BACKOFF_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0)) as session:
            while True:
                try:
                    if not self._version:
                        await self._list(session)
                        update(frozenset(self._pods.values()))
                    began = loop.time()
                    async for event in self._watch(session):
                        changed = self._apply(event)
                        backoff = MIN_BACKOFF_S
                        if changed:
                            update(frozenset(self._pods.values()))
                    if loop.time() - began < MIN_WATCH_S:
                        raise KubernetesError("the watch ended at once")
                    backoff = MIN_BACKOFF_S
                except Exception as error:
                    unreachable = isinstance(error, aiohttp.ClientError | OSError)
                    if not unreachable:
                        # Our version may be too old (410 Gone), or newer than what etcd was restored from (504): then
                        # no watch from it would ever begin.
                        self._version = ""
                    expected = unreachable or isinstance(error, KubernetesError)
                    again = f"again in {backoff:.1f} s"
                    log.warning("watching pods: %s: %s; %s", type(error).__name__, error, again, exc_info=not expected)
                    await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                    backoff = min(MAX_BACKOFF_S, backoff * 2)

    async def _list(self, session: aiohttp.ClientSession) -> None:
        answer = b"".join([part async for part in self._get(session, {})])
        listing = _decode(answer)
        found = {pod["metadata"]["uid"]: endpoint(pod) for pod in listing["items"]}
        self._pods = {uid: known for uid, known in found.items() if known}
        self._version = listing["metadata"]["resourceVersion"]

    async def _watch(self, session: aiohttp.ClientSession) -> AsyncIterator[dict[str, Any]]:
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._watch_seconds),
        }
        # Lines are split here: aiohttp's readline gives up on pods with long managedFields.
        rest = b""
        async for part in self._get(session, query):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _decode(line)

    async def _get(self, session: aiohttp.ClientSession, query: dict[str, str]) -> AsyncIterator[bytes]:
        async with session.get(
            self._path,
            params={"labelSelector": self._selector, **query},
            headers={"Authorization": f"Bearer {self._server.token.get()}", "Accept": "application/json"},
            ssl=self._server.tls.get() if self._server.tls else False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=self._silence),
        ) as answer:
            if answer.status != 200:
                raise KubernetesError(f"{answer.status} {(await answer.text())[:500]}")
            async for part in answer.content.iter_any():
                yield part

    def _apply(self, event: dict[str, Any]) -> bool:
        """Whether the endpoints changed."""
        kind, pod = event["type"], event["object"]
        if kind == "ERROR":
            raise KubernetesError(f"watch error: {pod.get('code')} {pod.get('message')}")
        self._version = pod["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return False
        uid = pod["metadata"]["uid"]
        before = self._pods.pop(uid, None)
        after = endpoint(pod) if kind != "DELETED" else None
        if after is not None:
            self._pods[uid] = after
        return before != after


def endpoint(pod: dict[str, Any]) -> Endpoint | None:
    """None for a pod that has no address yet, has ended, or is none of ours."""
    meta, status = pod["metadata"], pod.get("status", {})
    role, host = meta.get("labels", {}).get(labels.ROLE), status.get("podIP")
    if role not in ROLES or not host or status.get("phase") in ("Succeeded", "Failed"):
        return None
    host = f"[{host}]" if ":" in host else host
    return Endpoint(f"http://{host}:{ports.API}", cast("Role", role), leaving="deletionTimestamp" in meta)


def _decode(text: bytes) -> dict[str, Any]:
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise KubernetesError(f"no JSON from the API server: {error}") from error
    if not isinstance(decoded, dict):
        raise KubernetesError("no JSON object from the API server")
    return decoded
