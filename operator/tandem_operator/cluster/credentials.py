"""Who we are for the API server, and by which authority we know it: both are replaced while the operator runs."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable

import kopf
import yaml

log = logging.getLogger(__name__)

RENEW_S = 60.0
"""The kubelet rewrites tokens and authorities well before they expire; so often the files are read again."""

Login = Callable[[], kopf.ConnectionInfo]


class NoCredentials(RuntimeError):
    """Neither a service account nor a usable kubeconfig is at hand."""


def login() -> kopf.ConnectionInfo:
    """In a pod its service account, else the kubeconfig. Raises `NoCredentials`, `OSError`."""
    settings = kopf.OperatorSettings()
    found = kopf.login_with_service_account(settings=settings, logger=log) or _from_kubeconfig(settings)
    if found is None:
        raise NoCredentials("no credentials: run in a pod with a service account, or set KUBECONFIG")
    return found


def _from_kubeconfig(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo | None:
    try:
        found = kopf.login_with_kubeconfig(settings=settings, logger=log)
        if found is not None:
            if not found.server:
                raise NoCredentials("kubeconfig: the cluster of its current context has no server")
            # Of a certificate that is none we hear only now.
            found.as_ssl_context()
        return found
    except (kopf.LoginError, yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        # kopf takes its shape for granted: a file that is just being written may have any.
        raise NoCredentials(f"kubeconfig: {type(error).__name__}: {error}") from error


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
