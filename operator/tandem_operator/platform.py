"""What a cluster's platform calls things, as data: RDMA devices, load balancers, monitoring, object storage.

The chart mounts it from its value `platform`. The names of clouds appear in such files and nowhere in the code. It only
fills what a service leaves open, and pods that run keep what they were made with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class PlatformError(ValueError):
    """A platform file cannot be used; the message names the file and the field."""


class _Data(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class RdmaDevices(_Data):
    resource_name: str
    """Resource of one device, such as rdma/hca."""
    network_annotation: str | None = None
    """Annotation that attaches networks: a JSON list with one `network` for each device."""
    network: dict[str, Any] = Field(default_factory=dict)
    gid_index: int | None = None
    """NCCL_IB_GID_INDEX; None: NCCL chooses."""


class LoadBalancer(_Data):
    """Of gateway Services of type LoadBalancer that name no class of their own."""

    load_balancer_class: str | None = None
    annotations: dict[str, str] = Field(default_factory=dict)
    """A service's own annotations win."""


class Platform(_Data):
    region: str | None = None
    """Region of presets' buckets."""
    network: Literal["Public", "VPC"] = "Public"
    """Which endpoint of a tos:// region."""
    rdma: RdmaDevices | None = None
    load_balancer: LoadBalancer = LoadBalancer()
    monitor_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of every PodMonitor."""


def load(path: Path) -> Platform:
    """Raises `PlatformError`, `OSError`."""
    try:
        return Platform.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise PlatformError(f"{path}: {error}") from error
