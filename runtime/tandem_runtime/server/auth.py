"""Who may call: API keys of clients, tickets of gateways. Keys come from files that may change while we run."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from tandem_contract.ticket import NonceLedger, TicketError, parse_keys, verify

from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.messages import SignedTicket
from tandem_runtime.server.errors import UnauthorizedError

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
MAX_TICKETS = 4

Value = TypeVar("Value")


class ReloadedFile(Generic[Value]):
    """The parsed content of a file that is read again when it changes; an unreadable new version is not taken."""

    def __init__(
        self, path: str, parse: Callable[[str], Value], *, flag: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises `StartupError` that names `flag`."""
        self._path = Path(path)
        self._parse = parse
        self._clock = clock
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise StartupError(f"{flag} {path}: {error}") from error
        self._checked_at = clock()

    @property
    def value(self) -> Value:
        now = self._clock()
        if now - self._checked_at >= CHECK_INTERVAL_S:
            self._checked_at = now
            try:
                if self._stamp() != self._read_stamp:
                    self._read()
                    logger.info("%s has changed and was read again", self._path)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be read, its last content stays in force: %s", self._path, error)
        return self._value

    def _read(self) -> None:
        stamp = self._stamp()
        self._value = self._parse(self._path.read_text(encoding="utf-8"))
        self._read_stamp = stamp

    def _stamp(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


class ApiKeys:
    def __init__(self, file: ReloadedFile[tuple[bytes, ...]] | None) -> None:
        """Without a file every client may call."""
        self._file = file

    @classmethod
    def from_file(cls, path: str | None) -> ApiKeys:
        return cls(None if path is None else ReloadedFile(path, _digests, flag="--api-key-file"))

    def check(self, authorization: str | None) -> None:
        """`authorization`: the header's value. Raises `UnauthorizedError`."""
        if self._file is None:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        # A list, so that the time taken does not tell which key matched.
        if not any([hmac.compare_digest(given, known) for known in self._file.value]):  # noqa: C419
            refusal = UnauthorizedError("a valid API key is required: Authorization: Bearer KEY")
            refusal.code = "invalid_api_key"
            raise refusal


class Tickets:
    """Verifies the `TICKET` header; each ticket is honoured once."""

    def __init__(self, keys: ReloadedFile[tuple[bytes, ...]] | None) -> None:
        self._keys = keys
        self._spent = NonceLedger()

    @classmethod
    def from_file(cls, path: str | None) -> Tickets:
        return cls(None if path is None else ReloadedFile(path, parse_keys, flag="--ticket-key-file"))

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Those in force now."""
        return self._keys.value if self._keys is not None else ()

    def accept(self, header: str | None) -> list[SignedTicket]:
        """Comma-separated, the preferred pod first. Raises `UnauthorizedError` if any must not be honoured."""
        if not header:
            return []
        texts = [text.strip() for text in header.split(",")]
        try:
            if len(texts) > MAX_TICKETS:
                raise TicketError(f"more than {MAX_TICKETS} tickets")
            signed = [SignedTicket(verify(text, self.keys), text) for text in texts]
            for one in signed:
                self._spent.spend(one.ticket)
        except TicketError as error:
            refusal = UnauthorizedError(str(error))
            refusal.code = "invalid_ticket"
            raise refusal from error
        return signed


def _digests(text: str) -> tuple[bytes, ...]:
    keys = tuple(_digest(line.strip()) for line in text.splitlines() if line.strip())
    if not keys:
        raise ValueError("no API key found")
    return keys


def _digest(key: str) -> bytes:
    """Of equal length for every key, so that comparing tells nothing about a key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
