"""Tickets: the gateway's signed permission for one request to use one prefill pod; and signed control messages.

Format: `v1.<payload>.<signature>`, both parts base64url without padding; the signature is
HMAC-SHA256 (RFC 2104) over `v1.<payload>`. The payload is compact JSON. A verifier accepts any
of several keys, so that a key can be rotated without downtime: verifiers learn the new key first.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tandem_contract.flag_files import flag_file
from tandem_contract.reloading import ReloadingFile

DEFAULT_TTL_S = 120.0
MESSAGE_TTL_S = 120.0
MIN_KEY_BYTES = 16


Refusal = Literal["malformed", "signature", "expired", "replayed", "misdirected", "full"]
"""`misdirected`: for another request or pod; `full`: too many tickets are outstanding to tell replays."""


class TicketError(ValueError):
    """The ticket must not be honoured; the message says why and never contains key material."""

    def __init__(self, message: str, *, reason: Refusal) -> None:
        super().__init__(message)
        self.reason = reason
        """A metric label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    request_id: str
    prefill_host: str
    prefill_port: int
    """Handoff control port of the prefill pod."""
    prefill_incarnation: str
    nonce: str
    expires_at: float
    """Unix seconds."""

    @property
    def prefill_url(self) -> str:
        host = f"[{self.prefill_host}]" if ":" in self.prefill_host else self.prefill_host
        return f"http://{host}:{self.prefill_port}"


def new_nonce() -> str:
    return secrets.token_urlsafe(16)


def sign(ticket: Ticket, key: bytes) -> str:
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"ticket key has {len(key)} bytes, needs at least {MIN_KEY_BYTES}")
    payload = json.dumps(asdict(ticket), separators=(",", ":"), sort_keys=True).encode()
    signed = b"v1." + _b64(payload)
    return (signed + b"." + _b64(_mac(signed, key))).decode()


def verify(text: str, keys: Sequence[bytes], *, now: float | None = None) -> Ticket:
    """Checks signature, shape and expiry, in that order. Replay is `NonceLedger`'s to refuse."""
    if len(text) > 4096:
        raise TicketError("ticket is too long", reason="malformed")
    signed, dot, signature = text.rpartition(".")
    if not dot or not signed.startswith("v1."):
        raise TicketError("ticket is not of version v1", reason="malformed")
    try:
        given = _unb64(signature)
        raw = signed.encode("ascii")
    except ValueError as error:
        raise TicketError("ticket is not base64url", reason="malformed") from error
    # A list, so that the time taken does not tell which key matched.
    if not any([hmac.compare_digest(_mac(raw, key), given) for key in keys]):  # noqa: C419
        raise TicketError("ticket signature does not match", reason="signature")
    try:
        ticket = Ticket(**json.loads(_unb64(signed[3:])))
    except (ValueError, TypeError) as error:
        raise TicketError("ticket payload is malformed", reason="malformed") from error
    if ticket.expires_at <= (time.time() if now is None else now):
        raise TicketError("ticket has expired, or the clocks of gateway and pod differ", reason="expired")
    return ticket


class NonceLedger:
    """Remembers nonces until they expire, so that a ticket is honoured once per pod. Thread-safe."""

    def __init__(self, max_entries: int = 1_000_000) -> None:
        self._expiry: dict[str, float] = {}
        self._max_entries = max_entries
        self._lock = threading.Lock()

    def spend(self, ticket: Ticket, *, now: float | None = None) -> None:
        """Raises `TicketError` when the nonce was spent before, or when the ledger is full."""
        now = time.time() if now is None else now
        with self._lock:
            if ticket.nonce in self._expiry:
                raise TicketError("ticket was already used", reason="replayed")
            if len(self._expiry) >= self._max_entries:
                self._forget(now)
                if len(self._expiry) >= self._max_entries:
                    raise TicketError("too many tickets outstanding", reason="full")
            self._expiry[ticket.nonce] = ticket.expires_at
            if len(self._expiry) % 4096 == 0:
                self._forget(now)

    def _forget(self, now: float) -> None:
        self._expiry = {nonce: at for nonce, at in self._expiry.items() if at > now}


def sign_message(path: str, body: bytes, key: bytes, *, now: float | None = None) -> str:
    """For the `SIGNATURE` header of a handoff control message between pods, which share the ticket keys."""
    sent_at = f"{time.time() if now is None else now:.0f}"
    return f"{sent_at}.{_b64(_mac(_message(sent_at, path, body), key)).decode()}"


def verify_message(signature: str, path: str, body: bytes, keys: Sequence[bytes], *, now: float | None = None) -> None:
    """Raises `TicketError` unless a holder of one of `keys` signed this within `MESSAGE_TTL_S`.

    A repeated message is not refused: handoff messages are idempotent, and a job's ticket is spent only once.
    """
    sent_at, _, mac = signature.partition(".")
    try:
        given = _unb64(mac)
        age = (time.time() if now is None else now) - int(sent_at)
    except (ValueError, OverflowError) as error:
        raise TicketError("the message is not signed", reason="malformed") from error
    signed = _message(sent_at, path, body)
    if not any([hmac.compare_digest(_mac(signed, key), given) for key in keys]):  # noqa: C419
        raise TicketError("the message's signature does not match", reason="signature")
    if abs(age) > MESSAGE_TTL_S:
        raise TicketError("the message was signed too long ago, or the pods' clocks differ", reason="expired")


def keys_from_file(path: str) -> ReloadingFile[tuple[bytes, ...]]:
    """Raises `FlagError`."""
    with flag_file("ticket_key_file", path, wants="write one key per line, the one that signs first"):
        return ReloadingFile(path, parse_keys)


def parse_keys(text: str) -> tuple[bytes, ...]:
    """One key per non-empty line; the first signs, all verify. Raises `ValueError` on a short key."""
    keys = tuple(line.strip().encode() for line in text.splitlines() if line.strip())
    for key in keys:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"a ticket key has {len(key)} bytes, needs at least {MIN_KEY_BYTES}")
    if not keys:
        raise ValueError("no ticket key found")
    return keys


def _message(sent_at: str, path: str, body: bytes) -> bytes:
    return f"{sent_at}.{path}.".encode() + body


def _mac(data: bytes, key: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unb64(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    # The last character may have bits that belong to no byte: one ticket has one spelling.
    if _b64(data) != text.encode():
        raise ValueError("not the shortest spelling")
    return data
