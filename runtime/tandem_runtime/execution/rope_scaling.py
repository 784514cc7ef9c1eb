"""Scaled rotary embeddings as a config or `--rope-scaling` names them: read, completed, checked."""

from __future__ import annotations

import json
import math
from typing import Any

from tandem_runtime.core.errors import StartupError, UnsupportedModelError
from tandem_runtime.execution.config_fields import mapping, positive

ROPE_TYPES = ("default", "linear", "yarn", "llama3")
_FLAG = "--rope-scaling"
_FORMS = 'none, yarn, yarn:FACTOR, yarn:FACTOR:ORIGINAL_LENGTH or a JSON object with "rope_type"'


def rope_parameters(raw: dict[str, Any], flag: str | None, *, max_model_len: int | None = None) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`, `rope_theta` included: `config.json`'s fields `raw` with the flag over them.

    transformers 5 writes `rope_parameters`; older configs `rope_theta` beside an optional `rope_scaling`.
    YaRN without a factor gets the one that stretches the original length to `max_model_len`.
    Raises `StartupError`, `UnsupportedModelError`.
    """
    rope = _typed(mapping(raw, "rope_scaling") | mapping(raw, "rope_parameters"))
    rope.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
    positive(rope, "rope_theta")
    if flag is not None:
        asked = _parse(flag)
        rope = {"rope_theta": rope["rope_theta"]} | asked if flag == "none" else rope | asked
    if rope["rope_type"] not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope['rope_type']} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    if rope["rope_type"] in ("yarn", "llama3"):
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
        _check(rope, "original_max_position_embeddings", least=1)
    if rope["rope_type"] == "yarn" and "factor" not in rope and max_model_len is not None:
        rope["factor"] = max(1.0, max_model_len / rope["original_max_position_embeddings"])
    if rope["rope_type"] != "default":
        if "factor" not in rope:
            remedy = "; give --max-model-len, or yarn:FACTOR" if rope["rope_type"] == "yarn" else ""
            raise StartupError(f"rope_type {rope['rope_type']} needs a factor{remedy}")
        _check(rope, "factor", least=1)
    if rope["rope_type"] == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            positive(rope, name)
    return rope


def context_length(declared: int, rope: dict[str, Any]) -> int:
    """Tokens; `declared` is the config's `max_position_embeddings`."""
    if rope["rope_type"] != "yarn":
        return declared
    stretched: float = rope["original_max_position_embeddings"] * rope["factor"]
    return max(declared, round(stretched))


def _parse(flag: str) -> dict[str, Any]:
    if flag.startswith("{"):
        try:
            given: dict[str, Any] = json.loads(flag)
        except ValueError as error:
            raise StartupError(f"{_FLAG} is no JSON object: {error}") from None
        return _typed(given) if "type" in given else given
    kind, *numbers = flag.split(":")
    if flag == "none":
        return {"rope_type": "default"}
    if kind != "yarn" or len(numbers) > 2:
        raise StartupError(f"{_FLAG} {flag!r} is none of {_FORMS}")
    asked: dict[str, Any] = {"rope_type": kind}
    try:
        if numbers:
            asked["factor"] = float(numbers[0])
        if len(numbers) == 2:
            asked["original_max_position_embeddings"] = int(numbers[1])
    except ValueError:
        raise StartupError(f"{_FLAG} {flag!r} is none of {_FORMS}") from None
    return asked


def _typed(rope: dict[str, Any]) -> dict[str, Any]:
    """With `rope_type`, which older configs call `type`."""
    kind = rope.pop("type", None)
    return rope | {"rope_type": kind or rope.get("rope_type") or "default"}


def _check(rope: dict[str, Any], name: str, *, least: float) -> None:
    value = rope[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise StartupError(
            f"rope scaling: {name} must be a number of at least {least}, not {value!r} ({_FLAG} or config.json)"
        )
