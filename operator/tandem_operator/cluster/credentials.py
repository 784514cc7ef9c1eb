"""Who we are for the API server, and by which authority we know it: both are replaced while the operator runs."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable

import kopf

log = logging.getLogger(__name__)

RENEW_S = 60.0
"""The kubelet rewrites tokens and authorities well before they expire; so often the files are read again."""

Login = Callable[[], kopf.ConnectionInfo]


class NoCredentials(RuntimeError):
    """Neither a service account nor a kubeconfig is at hand."""


def login() -> kopf.ConnectionInfo:
    """In a pod its service account, else the kubeconfig. Raises `NoCredentials`."""
    settings = kopf.OperatorSettings()
    found = kopf.login_with_service_account(settings=settings, logger=log) or kopf.login_with_kubeconfig(
        settings=settings, logger=log
    )
    if found is None:
        raise NoCredentials("no credentials: run in a pod with a service account, or set KUBECONFIG")
    return found


class Credentials:
    def __init__(self, login: Login = login) -> None:
        """Raises `NoCredentials`, `OSError`."""
        self._login = login
        self._read()

    def current(self) -> tuple[kopf.ConnectionInfo, ssl.SSLContext]:
        """Those of a moment ago where they cannot be read anew."""
        if time.monotonic() >= self._until:
            try:
                self._read()
            except (NoCredentials, OSError) as error:
                log.warning("credentials cannot be read anew: %s: %s", type(error).__name__, error)
        return self._info, self._tls

    def refused(self) -> None:
        """Replaced before their time, by either side: the next request reads them anew."""
        self._until = time.monotonic()

    def _read(self) -> None:
        info = self._login()
        self._info, self._tls = info, info.as_ssl_context()
        self._until = time.monotonic() + RENEW_S
