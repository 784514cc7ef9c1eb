"""From `spec.model` to what a role's pods mount, download and serve."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tandem_contract import ports
from tandem_contract.fetch_flags import FetchFlags
from tandem_contract.flags import FlagError

from tandem_operator.api.model import ModelSpec
from tandem_operator.api.roles import RoleSpec
from tandem_operator.api.service import InvalidSpec
from tandem_operator.plan.context import Installation
from tandem_operator.presets import Preset

MODELS = "/models"
"""Where the volume with the weights, downloaded or not, is mounted."""
CREDENTIALS = "/etc/tandem/credentials"
TERMINATION_LOG = "/dev/termination-log"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|\((\w+)\)|(\w+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    uri: str
    served_name: str
    folder: str
    """Absolute path of the model inside the pod."""
    fetch: FetchFlags
    """For mounted folders it only checks that a model is there."""
    volume: dict[str, Any]
    """Source of the volume at `MODELS`, such as {"emptyDir": {}}."""
    sub_path: str | None
    """Folder of the volume to mount, for claims."""
    downloads: bool
    credentials: str | None
    """Name of the Secret to mount at `CREDENTIALS`."""


def find_preset(model: ModelSpec, presets: Mapping[str, Preset]) -> Preset | None:
    if model.preset is None:
        return None
    try:
        return presets[model.preset]
    except KeyError:
        known = ", ".join(sorted(presets))
        raise InvalidSpec(f"spec.model.preset: {model.preset} is unknown; one of {known}, or set uri") from None


def plan_model(model: ModelSpec, role: RoleSpec, installation: Installation) -> ModelPlan:
    """Raises `InvalidSpec`."""
    preset = find_preset(model, installation.presets)
    region = model.region or (installation.platform.region if preset else None)
    uri = _filled(model.uri or "" if preset is None else preset.uri, model, region)
    uri = _expanded(uri, {entry.name: entry.value for entry in role.template.env if entry.value is not None})
    scheme, _, rest = uri.partition("://")
    served = model.served_name or (preset.served_name if preset else uri.rstrip("/").rpartition("/")[2])
    if scheme in ("hostPath", "pvc"):
        return _mounted(scheme, rest, uri, served)
    cache, secret = model.storage.cache, model.storage.secret_ref
    volumes: dict[str, dict[str, Any]] = {
        "EmptyDir": {"emptyDir": {"sizeLimit": str(cache.size_limit)} if cache.size_limit else {}},
        "HostPath": {"hostPath": {"path": cache.path, "type": "DirectoryOrCreate"}},
        "PVC": {"persistentVolumeClaim": {"claimName": cache.claim_name}},
    }
    network = model.storage.network or installation.platform.network
    folder = f"{MODELS}/{_slug(uri, model.revision)}"
    fetch = FetchFlags(
        uri=uri,
        destination=folder,
        region=region,
        endpoint=model.storage.endpoint,
        internal=scheme == "tos" and not model.storage.endpoint and network == "VPC",
        addressing=model.storage.addressing,
        credentials_dir=CREDENTIALS if secret else None,
        anonymous=model.storage.anonymous,
        revision=model.revision,
        # Where the engine listens later: one scrape target shows the download, then the engine.
        metrics_port=ports.METRICS,
        termination_log=TERMINATION_LOG,
    )
    try:
        fetch.check()
    except FlagError as error:
        raise InvalidSpec(f"spec.model: {error}") from error
    return ModelPlan(
        uri=uri,
        served_name=served,
        folder=folder,
        fetch=fetch,
        volume=volumes[cache.type],
        sub_path=None,
        downloads=True,
        credentials=secret.name if secret else None,
    )


def _mounted(scheme: str, rest: str, uri: str, served: str) -> ModelPlan:
    sub_path = None
    if scheme == "hostPath":
        if not rest.startswith("/"):
            raise InvalidSpec(f"spec.model.uri: {uri} is no absolute path; write hostPath:///PATH")
        volume: dict[str, Any] = {"hostPath": {"path": rest.rstrip("/"), "type": "Directory"}}
    else:
        claim, _, path = rest.partition("/")
        volume = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        sub_path = path.strip("/") or None
    return ModelPlan(
        uri=uri,
        served_name=served,
        folder=MODELS,
        fetch=FetchFlags(uri=MODELS, termination_log=TERMINATION_LOG),
        volume=volume,
        sub_path=sub_path,
        downloads=False,
        credentials=None,
    )


def _filled(uri: str, model: ModelSpec, region: str | None) -> str:
    if "{region}" not in uri:
        return uri
    if region is None:
        raise InvalidSpec(
            f"spec.model.region is required with preset {model.preset}: name the bucket's region, such as cn-beijing"
        )
    return uri.replace("{region}", region)


def _expanded(uri: str, env: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}` and `$(NAME)` by the literal values of the role's `template.env`."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[3]
        if name not in env:
            raise InvalidSpec(f"spec.model.uri: ${name} is not set; add it with a value to template.env of both roles")
        return env[name]

    expanded = _VARIABLE.sub(value, uri)
    if ".." in expanded.split("/"):
        raise InvalidSpec(f"spec.model.uri: {expanded} contains '..': name the folder itself")
    return expanded


def _slug(uri: str, revision: str | None) -> str:
    """A folder name that differs where the weights may, readable where it can be."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", uri.rstrip("/").rpartition("/")[2])[:48] or "model"
    digest = hashlib.sha256(f"{uri}@{revision or ''}".encode()).hexdigest()
    return f"{base}-{digest[:8]}"
