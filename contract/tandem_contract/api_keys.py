"""Clients' API keys, as the gateway and the engine pods check them."""

from __future__ import annotations

import hashlib
import hmac

from tandem_contract.flag_files import flag_file
from tandem_contract.reloading import ReloadingFile


class ApiKeys:
    """Keys as digests: the comparison takes the same time whichever key, and whatever length, is given."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def from_file(cls, path: str) -> ReloadingFile[ApiKeys]:
        """Raises `FlagError`."""
        with flag_file("api_key_file", path, wants="write one key per line"):
            return ReloadingFile(path, cls.parse)

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """One key per line; empty lines and those that begin with # are none.

        Raises `ValueError` when there is no key: an empty file must not open the door.
        """
        lines = (line.strip() for line in text.splitlines())
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError("no API key found")
        return cls(keys)

    def accept(self, authorization: str | None) -> bool:
        """`authorization`: the value of that header, None when the request has none (RFC 6750, section 2.1)."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # A list, so that the time taken does not tell which key matched.
        return any([hmac.compare_digest(given, digest) for digest in self._digests]) and scheme.lower() == "bearer"  # noqa: C419


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
