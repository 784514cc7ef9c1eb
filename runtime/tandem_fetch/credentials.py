"""Access keys, from the environment or a mounted Secret. Nothing here is ever logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tandem_fetch.errors import MissingCredentials

_NAMES = {
    "access_key": ("AWS_ACCESS_KEY_ID", "TOS_ACCESS_KEY"),
    "secret_key": ("AWS_SECRET_ACCESS_KEY", "TOS_SECRET_KEY"),
    "session_token": ("AWS_SESSION_TOKEN", "TOS_SECURITY_TOKEN", "TOS_SESSION_TOKEN"),
}


@dataclass(frozen=True, slots=True)
class Keys:
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    """Of a temporary (STS) credential."""


def load(scheme: str, env: Mapping[str, str], folder: Path | None) -> Keys:
    """Reads afresh on each call, so that a renewed Secret is noticed. Raises `MissingCredentials`."""
    lookup = env.get if folder is None else _file_lookup(folder)
    own = "TOS_" if scheme == "tos" else "AWS_"
    family = own if lookup(_name("access_key", own)) else ("AWS_" if own == "TOS_" else "TOS_")
    access_key, secret_key = lookup(_name("access_key", family)), lookup(_name("secret_key", family))
    if not access_key or not secret_key:
        where = "the environment" if folder is None else str(folder)
        raise MissingCredentials(
            f"no access key in {where}",
            f"set {_name('access_key', own)} and {_name('secret_key', own)}, or use --anonymous for a public bucket",
        )
    tokens = (lookup(name) for name in _NAMES["session_token"] if name.startswith(family))
    return Keys(access_key, secret_key, next((token for token in tokens if token), None))


def hub_token(env: Mapping[str, str], folder: Path | None) -> str | None:
    """None: for models that need none."""
    return (env.get if folder is None else _file_lookup(folder))("HF_TOKEN") or None


def _name(part: str, family: str) -> str:
    return next(name for name in _NAMES[part] if name.startswith(family))


def _file_lookup(folder: Path) -> Callable[[str], str | None]:
    def lookup(name: str) -> str | None:
        try:
            return (folder / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    return lookup
