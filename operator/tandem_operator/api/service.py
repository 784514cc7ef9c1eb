"""The InferenceService itself: spec, status, group and version."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from tandem_operator.api.base import ApiModel, Arg, Rule, StringMap, keyed, section
from tandem_operator.api.gateway import GatewaySpec
from tandem_operator.api.model import ModelSpec
from tandem_operator.api.roles import EXTRA_ARGS_RULE, DecodeSpec, RoleSpec

GROUP = "serving.tandem.dev"
VERSION = "v1alpha1"
PLURAL = "inferenceservices"
KIND = "InferenceService"
API_VERSION = f"{GROUP}/{VERSION}"

MAX_NAME = 35
"""The longest child, NAME-prefill-REVISION, must fit the 52 characters a StatefulSet's pods can carry in labels."""


class EngineSpec(ApiModel):
    accelerator: Literal["nvidia.com/gpu", "none"] = Field(
        "nvidia.com/gpu", description="Resource of a GPU; none computes on the CPU."
    )
    max_model_len: Annotated[int, Field(ge=2, le=1048576)] | None = Field(
        None,
        description="Longest prompt + answer in tokens; default: the preset's, else the model's own. Beyond the "
        "context of a preset's model, YaRN is switched on.",
    )
    quantization: Literal["auto", "none", "fp8"] = Field("auto", description="auto: as the checkpoint says.")
    kv_cache_dtype: Literal["auto", "fp8"] = Field("auto", description="auto: as the model's dtype.")
    extra_args: Annotated[list[Arg], Field(max_length=64)] = Field(
        [], description="More flags of `tandem serve` for both roles."
    )

    rules: ClassVar[tuple[Rule, ...]] = (EXTRA_ARGS_RULE,)


class Monitoring(ApiModel):
    pod_monitor: bool = Field(True, description="Make a PodMonitor where the cluster has that CRD.")
    labels: StringMap = Field({}, description='Labels of the PodMonitor, such as volcengine.vmp: "true".')


class InferenceServiceSpec(ApiModel):
    model: ModelSpec = Field(description="Which weights and where they come from.")
    prefill: RoleSpec = section(RoleSpec, "Pods that read prompts.")
    decode: DecodeSpec = section(DecodeSpec, "Pods that write answers.")
    gateway: GatewaySpec = section(GatewaySpec, "The router in front.")
    engine: EngineSpec = section(EngineSpec, "Settings of both roles.")
    monitoring: Monitoring = section(Monitoring, "What monitoring sees.")
    suspend: bool = Field(False, description="Scale every pod to zero and keep the rest.")
    restarted_at: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Change it to replace all pods, such as to take up the operator's new default image."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.engine.accelerator != 'none' || (self.prefill.rdma == 0 && self.decode.rdma == 0)",
            "engine.accelerator none computes on the CPU: set prefill.rdma and decode.rdma to 0",
        ),
        Rule(
            "self.engine.accelerator != 'none' || (self.engine.quantization != 'fp8' && "
            "self.engine.kvCacheDtype != 'fp8')",
            "engine.accelerator none has no fp8: set engine.quantization and engine.kvCacheDtype to auto",
        ),
    )


class Condition(ApiModel):
    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: int | None = None
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class RoleStatus(ApiModel):
    summary: str | None = Field(None, description="Ready pods of the wanted revision / wanted pods.")
    desired: int | None = None
    replicas: int | None = Field(None, description="Pods of any revision.")
    updated: int | None = Field(None, description="Pods of the wanted revision.")
    ready: int | None = Field(None, description="Ready pods of any revision.")


class GatewayStatus(ApiModel):
    replicas: int | None = None
    ready: int | None = None


class ModelStatus(ApiModel):
    served_name: str | None = None
    uri: str | None = Field(None, description="After the preset and the region were filled in.")


class InferenceServiceStatus(ApiModel):
    observed_generation: int | None = Field(None, description="Generation of the spec that this status describes.")
    url: str | None = None
    revision: str | None = Field(None, description="Revision wanted by the spec.")
    model: ModelStatus | None = None
    prefill: RoleStatus | None = None
    decode: RoleStatus | None = None
    gateway: GatewayStatus | None = None
    conditions: list[Condition] = Field([], json_schema_extra=keyed("type"))


class InferenceService(ApiModel):
    """A language model served with prefill and decode on separate pods."""

    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= {MAX_NAME}",
            f"metadata.name must be at most {MAX_NAME} lower-case letters, digits and hyphens and start with a letter: "
            "the names of its Services and pods are made from it",
        ),
    )


class InvalidSpec(ValueError):
    """The spec cannot be served; the message names the field and the remedy."""


def parse_spec(body: dict[str, Any]) -> InferenceServiceSpec:
    """The typed spec of an InferenceService as the API server holds it. Raises `InvalidSpec`."""
    try:
        return InferenceServiceSpec.model_validate(body.get("spec", {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
