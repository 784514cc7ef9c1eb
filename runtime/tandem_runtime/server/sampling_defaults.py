"""How a model's makers want it sampled: `generation_config.json`, for what a request leaves out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_runtime.core.errors import StartupError

FILE = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Named and meant as in the API; these values are what applies where a model asks for nothing.

    `do_sample` is not read: a request is greedy when it asks for temperature 0.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_folder(cls, folder: str) -> SamplingDefaults:
        """Raises `StartupError` that names the file."""
        path = Path(folder) / FILE
        try:
            given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if not isinstance(given, dict):
                raise ValueError("it is no JSON object")
            wanted = {name: value for name in _BOUNDS if (value := given.get(name)) is not None}
            return cls(**{name: _checked(name, value) for name, value in wanted.items()})
        except (OSError, ValueError) as error:
            raise StartupError(f"{path}: {error}; --generation-config none does without it") from error


NEUTRAL = SamplingDefaults()

_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
}
"""As for requests."""


def _checked(name: str, value: object) -> Any:
    low, high = _BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} {value!r} is not a number from {low:g} to {high:g}")
    return max(0, int(value)) if name == "top_k" else float(value)
