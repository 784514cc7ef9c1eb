"""The revision of a service: a hash of everything in its spec that shapes prefill and decode pods.

Replicas, scaling, rollout limits, gateway and monitoring are left out, so changing them restarts nothing. So are the
operator's own defaults and the way it renders pods: an upgraded operator leaves running pods alone.
"""

from __future__ import annotations

import hashlib
import json

from tandem_operator.api.service import InferenceServiceSpec
from tandem_operator.plan.context import ENGINE_ROLES

_NOT_SHAPING = {"replicas", "scaling", "rollout"}


def revision(spec: InferenceServiceSpec) -> str:
    """Eight letters and digits. A field left out and its default are the same; so is a new field at its default."""
    dump = spec.model_dump(mode="json", exclude_defaults=True)
    shaping: dict[str, object] = {key: dump[key] for key in ("model", "engine", "restarted_at") if key in dump}
    for role in ENGINE_ROLES:
        shaping[role] = {key: value for key, value in dump.get(role, {}).items() if key not in _NOT_SHAPING}
    text = json.dumps(shaping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
