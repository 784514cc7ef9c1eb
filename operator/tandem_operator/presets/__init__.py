"""Known models as data: where their weights lie, what one pod of them needs, how long their context is.

A preset only fills fields the user left empty. The operator reads `presets.yaml` and a file that the chart mounts.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class PresetError(ValueError):
    """A presets file cannot be used; the message names the file and the field."""


class RolePreset(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    tensor: Annotated[int, Field(ge=1, le=8)]
    """GPUs of one pod, sized for 80 GB each."""
    cpu: Annotated[str, Field(coerce_numbers_to_str=True)]
    memory: str


class Yarn(BaseModel):
    """How far the checkpoint's rotary embedding may be stretched, and from which length (arXiv:2309.00071)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    original_length: Annotated[int, Field(ge=1)]
    max_model_len: int


class Preset(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    uri: str
    """`{region}` is replaced by the service's region."""
    served_name: str
    max_model_len: int
    """Tokens that fit the checkpoint's own rope and leave the pod's GPUs room for KV pages."""
    yarn: Yarn | None = None
    """None: the context ends at `max_model_len`."""
    prefill: RolePreset
    decode: RolePreset


def load(extra: Path | None = None) -> Mapping[str, Preset]:
    """The built-in presets, with those of `extra` added or in their place. Raises `PresetError`."""
    builtin = files(__name__).joinpath("presets.yaml").read_text(encoding="utf-8")
    presets = parse(builtin, "presets.yaml")
    if extra is not None and extra.is_file():
        presets |= parse(extra.read_text(encoding="utf-8"), str(extra))
    return presets


def parse(text: str, name: str) -> dict[str, Preset]:
    try:
        raw: Any = yaml.safe_load(text) or {}
        return {key: Preset.model_validate(value) for key, value in raw.items()}
    except (yaml.YAMLError, ValidationError, AttributeError) as error:
        raise PresetError(f"{name}: {error}") from error
