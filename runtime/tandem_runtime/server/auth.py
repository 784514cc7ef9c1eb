"""Who may call: API keys of clients, tickets of gateways. Keys come from files that may change while we run."""

from __future__ import annotations

from tandem_contract.api_keys import ApiKeys
from tandem_contract.reloading import ReloadingFile
from tandem_contract.ticket import NonceLedger, TicketError, keys_from_file, verify

from tandem_runtime.core.errors import flag_errors
from tandem_runtime.engine.messages import SignedTicket
from tandem_runtime.server.errors import UnauthorizedError

MAX_TICKETS = 4


class Clients:
    """Which clients may call."""

    def __init__(self, keys: ReloadingFile[ApiKeys] | None) -> None:
        """Without keys every client may."""
        self._keys = keys

    @classmethod
    def from_file(cls, path: str | None) -> Clients:
        """Raises `StartupError`."""
        with flag_errors():
            return cls(None if path is None else ApiKeys.from_file(path))

    def check(self, authorization: str | None) -> None:
        """`authorization`: the header's value. Raises `UnauthorizedError`."""
        if self._keys is not None and not self._keys.get().accept(authorization):
            refusal = UnauthorizedError("a valid API key is required: Authorization: Bearer KEY")
            refusal.code = "invalid_api_key"
            raise refusal


class Tickets:
    """Verifies the `TICKET` header; each ticket is honoured once."""

    def __init__(self, keys: ReloadingFile[tuple[bytes, ...]] | None) -> None:
        self._keys = keys
        self._spent = NonceLedger()

    @classmethod
    def from_file(cls, path: str | None) -> Tickets:
        """Raises `StartupError`."""
        with flag_errors():
            return cls(None if path is None else keys_from_file(path))

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Those in force now."""
        return self._keys.get() if self._keys is not None else ()

    def sift(self, header: str | None) -> tuple[list[SignedTicket], list[TicketError]]:
        """Comma-separated, the preferred pod first: those to honour, and why the others must not be.

        A ticket is all that names a prefill pod's address, so that of a refused one is never contacted.
        """
        texts = [text.strip() for text in header.split(",")] if header else []
        if len(texts) > MAX_TICKETS:
            return [], [TicketError(f"more than {MAX_TICKETS} tickets", reason="malformed")]
        good, refused = [], []
        for text in texts:
            try:
                ticket = verify(text, self.keys)
                self._spent.spend(ticket)
            except TicketError as error:
                refused.append(error)
            else:
                good.append(SignedTicket(ticket, text))
        return good, refused
