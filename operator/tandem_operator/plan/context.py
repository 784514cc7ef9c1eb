"""What every decision may know besides the InferenceService's spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tandem_operator.api.service import InferenceServiceSpec
from tandem_operator.platform import Platform
from tandem_operator.presets import Preset

EngineRole = Literal["prefill", "decode"]
ENGINE_ROLES: tuple[EngineRole, ...] = ("prefill", "decode")
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How this operator was installed; the same for all services."""

    engine_image: str
    """Default image of prefill and decode pods."""
    small_image: str
    """Image of gateway and fetch."""
    presets: Mapping[str, Preset]
    platform: Platform = field(default_factory=Platform)
    cluster_domain: str = "cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One InferenceService, typed."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: InferenceServiceSpec

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"
