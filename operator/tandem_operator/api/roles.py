"""`spec.prefill` and `spec.decode`: how many engine pods of a role, of which shape, changed how."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from tandem_contract.flags import ServeFlags, option_name

from tandem_operator.api.base import ApiModel, Arg, Quantity, Rule, section
from tandem_operator.api.pods import EngineTemplate

OWNED_FLAGS = frozenset(
    {
        "model", "served_model_name", "role", "host", "port", "metrics_port", "handoff_port", "kv_data_port",
        "advertise_host", "tensor_parallel_size", "max_model_len", "quantization", "kv_cache_dtype", "api_key_file",
        "ticket_key_file", "drain_timeout", "log_format",
    }
)  # fmt: skip
"""Flags of `tandem serve` that the operator derives from other fields."""

FREE_FLAGS = tuple(option_name(f.name) for f in fields(ServeFlags) if f.name not in OWNED_FLAGS)
_FREE = "|".join(name[2:] for name in FREE_FLAGS)
# One long alternation costs CEL less than a loop over names for each argument.
EXTRA_ARGS_RULE = Rule(
    f"!has(self.extraArgs) || self.extraArgs.all(a, a.matches('^--(no-)?({_FREE})(=.*)?$'))",
    "extraArgs: each entry must be --FLAG=VALUE (or --FLAG, --no-FLAG) of tandem serve and none that has a field "
    f"of its own; allowed: {' '.join(FREE_FLAGS)}",
)
ExtraArgs = Annotated[list[Arg], Field(max_length=64)]


class Parallelism(ApiModel):
    tensor: int | None = Field(None, description="GPUs of one pod that share the model; default: the preset's, else 1.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.tensor) || self.tensor in [1, 2, 4, 8]",
            "parallelism.tensor must be 1, 2, 4 or 8: it has to divide the model's attention heads",
        ),
    )


class ScalingTarget(ApiModel):
    metric: Literal[
        "cpu", "tandem_requests_running", "tandem_requests_waiting", "tandem_kv_usage_ratio"
    ] = Field(description="cpu, or a pod metric that a metrics adapter serves.")  # fmt: skip
    average: Quantity = Field(description="Wanted average over pods; for cpu a percentage of the request.")


class Scaling(ApiModel):
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    targets: Annotated[list[ScalingTarget], Field(min_length=1, max_length=4)] = Field(
        [ScalingTarget(metric="tandem_requests_waiting", average=4)], description="The one asking for most pods counts."
    )
    scale_down_stabilization_seconds: Annotated[int, Field(ge=0, le=3600)] = 300

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "scaling.minReplicas must not be above scaling.maxReplicas: lower one or raise the other",
        ),
    )


class Rollout(ApiModel):
    strategy: Literal["RollingUpdate", "Recreate"] = Field(
        "RollingUpdate", description="Recreate stops the old pods first: where there are no spare GPUs."
    )
    max_surge: Annotated[int, Field(ge=0, le=1000)] = Field(1, description="Pods above the wanted number.")
    max_unavailable: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="Pods below the wanted number.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.strategy == 'Recreate' || self.maxSurge + self.maxUnavailable > 0",
            "rollout.maxSurge and rollout.maxUnavailable must not both be 0: raise one, or use strategy Recreate",
        ),
    )


class RoleSpec(ApiModel):
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="Wanted pods; 1 where neither replicas nor scaling is set."
    )
    scaling: Scaling | None = Field(None, description="Let a HorizontalPodAutoscaler choose the number.")
    parallelism: Parallelism = section(Parallelism, "How one pod spreads the model.")
    rdma: Annotated[int, Field(ge=0, le=16)] = Field(
        0,
        description="RDMA devices of a pod: resource and network annotation of the installation, and IPC_LOCK.",
    )
    rollout: Rollout = section(Rollout, "How pods are replaced when the service changes.")
    template: EngineTemplate = section(EngineTemplate, "Pod fields.")
    extra_args: ExtraArgs = Field([], description="More flags of `tandem serve` for this role.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.replicas) && has(self.scaling))",
            "replicas and scaling exclude each other: remove one (the autoscaler would fight a fixed number)",
        ),
        EXTRA_ARGS_RULE,
    )

    @property
    def fixed_replicas(self) -> int:
        return 1 if self.replicas is None else self.replicas


class DecodeSpec(RoleSpec):
    rules: ClassVar[tuple[Rule, ...]] = (
        *RoleSpec.rules,
        Rule(
            "!has(self.replicas) || self.replicas > 0",
            "decode.replicas must be at least 1, since decode pods answer clients: use suspend to stop the service",
        ),
    )
