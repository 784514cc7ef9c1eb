"""The ticket keys of a service and their rotation without downtime.

A new key is first learned by every verifier, then signs, then the old one is forgotten. Each step waits until kubelets
have brought the Secret's change to the pods; the last also until tickets signed with the old key have expired.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal, cast

from tandem_contract.ticket import DEFAULT_TTL_S, parse_keys

from tandem_operator.plan import names
from tandem_operator.plan.context import Manifest, Service

STAGE = "serving.tandem.dev/ticket-key-stage"
"""Annotation `STAGE:UNIX_SECONDS`; without it a rotation waits once more from now on."""
FILE = "keys"
ROTATE_AFTER_S = 30 * 24 * 3600.0
SPREAD_S = 180.0
"""Kubelets refresh mounted Secrets within about a minute and a half."""

Stage = Literal["steady", "learn", "sign"]


@dataclass(frozen=True, slots=True)
class KeyRing:
    keys: tuple[str, ...]
    """The first signs, all verify."""
    stage: Stage
    since: float
    """Unix seconds."""


def next_ring(ring: KeyRing | None, *, fresh: str, now: float, rotate_after: float = ROTATE_AFTER_S) -> KeyRing:
    """`fresh` is used where a new key is due. The same ring comes back while nothing is due."""
    if ring is None:
        return KeyRing((fresh,), "steady", now)
    age = now - ring.since
    if ring.stage == "steady" and age >= rotate_after:
        return KeyRing((ring.keys[0], fresh), "learn", now)
    if ring.stage == "learn" and age >= SPREAD_S:
        return KeyRing((ring.keys[1], ring.keys[0]), "sign", now)
    if ring.stage == "sign" and age >= SPREAD_S + DEFAULT_TTL_S:
        return KeyRing((ring.keys[0],), "steady", now)
    return ring


def read_ring(secret: Manifest | None, now: float) -> KeyRing | None:
    """None where there is no usable key, so that a broken Secret is made anew."""
    try:
        text = base64.b64decode((secret or {}).get("data", {})[FILE], validate=True).decode()
        keys = tuple(key.decode() for key in parse_keys(text))[:2]
    except (KeyError, ValueError, binascii.Error):
        return None
    annotations = (secret or {}).get("metadata", {}).get("annotations") or {}
    stage, _, since = annotations.get(STAGE, "").partition(":")
    try:
        began = float(since)
    except ValueError:
        stage, began = "", now
    if stage not in (("steady",) if len(keys) == 1 else ("learn", "sign")):
        stage, began = "steady" if len(keys) == 1 else "learn", now
    return KeyRing(keys, cast("Stage", stage), began)


def secret(service: Service, ring: KeyRing) -> Manifest:
    text = "".join(f"{key}\n" for key in ring.keys)
    manifest = names.child(
        service,
        "v1",
        "Secret",
        names.ticket_key(service.name),
        "gateway",
        type="Opaque",
        data={FILE: base64.b64encode(text.encode()).decode()},
    )
    manifest["metadata"]["annotations"] = {STAGE: f"{ring.stage}:{ring.since:.0f}"}
    return manifest
