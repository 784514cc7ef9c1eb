"""Kubernetes Events for what `kubectl describe` should tell as a story: conditions that changed. Pure."""

from __future__ import annotations

import hashlib

from tandem_operator.api.service import API_VERSION, KIND
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.names import MANAGER

TOLD = ("Ready", "Progressing", "Degraded")
EXPECTED = frozenset({"Suspended", "NoPodYet", "Starting", "Scaling", "RollingOut", "Downloading", "FormerChildren"})
"""Reasons for not being ready that pass by themselves."""


def events_for(body: Manifest, new: Manifest, previous: Manifest, *, now: str) -> list[Manifest]:
    """One for each condition in `TOLD` whose status or reason changed."""
    before = {c["type"]: (c["status"], c["reason"]) for c in previous.get("conditions", [])}
    changed = [
        c for c in new["conditions"] if c["type"] in TOLD and before.get(c["type"]) != (c["status"], c["reason"])
    ]
    return [_event(body, condition, now) for condition in changed if condition["reason"] != "Healthy"]


def _event(body: Manifest, condition: Manifest, now: str) -> Manifest:
    meta = body["metadata"]
    story = f"{meta['uid']}{condition['type']}{condition['status']}{condition['reason']}{now}"
    bad = condition["status"] == ("True" if condition["type"] == "Degraded" else "False")
    quiet = condition["type"] == "Progressing" or condition["reason"] in EXPECTED
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name']}.{hashlib.sha256(story.encode()).hexdigest()[:16]}",
            "namespace": meta["namespace"],
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": "Warning" if bad and not quiet else "Normal",
        "reason": condition["reason"],
        "message": f"{condition['type']} is {condition['status']}: {condition['message']}"[:1024],
        "source": {"component": MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
