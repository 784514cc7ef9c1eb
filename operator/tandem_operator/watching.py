"""kopf watches InferenceServices; every event becomes a key in the queue. Only event handlers, so kopf stores nothing
in the cluster: no finalizers, no annotations, no progress. Children are not its to watch: it filters labels on its own
side, and would have to be told about every pod of the cluster (ADR 0010).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from tandem_operator.api.service import GROUP, KIND, PLURAL, VERSION
from tandem_operator.cluster.client import Unread, reason_of
from tandem_operator.cluster.credentials import Login, NoCredentials, login
from tandem_operator.cluster.mirror import Changed
from tandem_operator.plan.names import MANAGER

LOGIN_S = 2.0
"""Between two logins: credentials that go on being refused are read anew no more often."""


class WatchEnded(RuntimeError):
    """kopf has given up, as when the CRD is gone."""


async def watch(
    changed: Changed, namespaces: Collection[str], *, unread: Unread = lambda kind, reason: None, login: Login = login
) -> None:
    """Runs until SIGTERM, or until cancelled; the first events name everything that exists. Raises `WatchEnded`."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        await kopf.operator(
            registry=registry(changed, Sessions(login, unread)),
            # kopf would ask for the user's name, and a pod's user id has none.
            identity=MANAGER,
            settings=settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
        )
    except Exception as error:
        raise WatchEnded(f"the watch of {PLURAL} has ended: {type(error).__name__}: {error}") from error


class Sessions:
    """What kopf asks the API server through. It keeps a session, with the token and the authority of that day, until it
    is answered 401 or finds the session closed, and then logs in anew."""

    def __init__(self, login: Login, unread: Unread) -> None:
        self._login = login
        self._unread = unread
        self._next = time.monotonic()

    async def __call__(self) -> kopf.AiohttpSession:
        """Raises `NoCredentials`, `OSError`."""
        await asyncio.sleep(self._next - time.monotonic())
        self._next = time.monotonic() + LOGIN_S
        info = self._login()
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._ended)
        trace.on_request_exception.append(self._failed)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            trace_configs=[trace],
        )
        return kopf.AiohttpSession(
            server=info.server, default_namespace=info.default_namespace, aiohttp_session=session
        )

    async def _ended(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        if params.response.status >= 400:
            self._unread(KIND, (params.response.reason or "").replace(" ", ""))

    async def _failed(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        # Not when it was cancelled.
        if isinstance(params.exception, Exception):
            self._unread(KIND, reason_of(params.exception))
        if isinstance(params.exception, aiohttp.ClientConnectorCertificateError):
            # Of another authority by now: the next session has read it.
            await session.close()


def registry(changed: Changed, sessions: Sessions) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers, backoff=LOGIN_S)  # type: ignore[untyped-decorator]
    async def credentials(**_: Any) -> kopf.AiohttpSession:
        try:
            return await sessions()
        except (NoCredentials, OSError) as error:
            # One line in the log, and no traceback.
            raise kopf.TemporaryError(f"{type(error).__name__}: {error}", delay=LOGIN_S) from error

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)  # type: ignore[untyped-decorator]
    def on_service(namespace: str, name: str, **_: Any) -> None:
        changed(namespace, name)

    return handlers


class _Patience:
    """Seconds between attempts at one request. Endless, else kopf ends for all namespaces where one is refused."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 5.0, 10.0), itertools.repeat(30.0))


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    # No rights to watch namespaces and CRDs are needed; the CRD is installed before the operator.
    chosen.scanning.disabled = True
    # A watch stream whose other end vanished is noticed by its own timeout.
    chosen.watching.server_timeout = 240
    chosen.watching.connect_timeout = 10
    chosen.networking.error_backoffs = _Patience()
    return chosen
