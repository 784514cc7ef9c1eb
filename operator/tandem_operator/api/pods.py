"""`template`: the pod fields that users set. Curated: a whole PodTemplateSpec would make the CRD unreadable."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tandem_operator.api.base import ApiModel, Name, Path, Quantity, Rule, StringMap, Text, keyed, section

Quantities = Annotated[dict[str, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    requests: Quantities = Field(default_factory=dict, description="What the scheduler reserves.")
    limits: Quantities = Field(default_factory=dict, description="What the pod may use.")


class KeyRef(ApiModel):
    name: Name
    key: Annotated[str, Field(min_length=1, max_length=253)]


class FieldRef(ApiModel):
    field_path: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Such as status.hostIP.")


class EnvSource(ApiModel):
    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(x, x).size() == 1",
            "template.env[].valueFrom: set exactly one of secretKeyRef, configMapKeyRef and fieldRef",
        ),
    )


class EnvVar(ApiModel):
    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Annotated[str, Field(max_length=4096)] | None = None
    value_from: EnvSource | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.value) != has(self.valueFrom)",
            "template.env[]: set exactly one of value and valueFrom",
        ),
        Rule(
            "!(self.name in ['POD_NAME', 'POD_IP', 'TANDEM_TICKET_KEY_FILE'])",
            "template.env[].name: POD_NAME, POD_IP and TANDEM_TICKET_KEY_FILE are set by the operator; remove it",
        ),
        Rule(
            "!has(self.value) || !self.name.matches('(^|_)(TOKEN|SECRET|PASSWORD|ACCESS_KEY)(_|$)')",
            "template.env[].value: credentials belong into a Secret; use valueFrom.secretKeyRef",
        ),
    )


class Toleration(ApiModel):
    key: Annotated[str, Field(max_length=316)] | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.operator == 'Equal' ? has(self.key) : !has(self.value)",
            "template.tolerations[]: operator Equal needs a key, operator Exists takes no value",
        ),
    )


class HostPathVolume(ApiModel):
    path: Path
    type: Literal["Directory", "DirectoryOrCreate", "File", "Socket", "CharDevice"] | None = None


class ClaimVolume(ApiModel):
    claim_name: Name
    read_only: bool = False


class ConfigMapVolume(ApiModel):
    name: Name


class SecretVolume(ApiModel):
    secret_name: Name


class EmptyDirVolume(ApiModel):
    medium: Literal["Memory"] | None = None
    size_limit: Quantity | None = None


class Volume(ApiModel):
    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    host_path: HostPathVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyDirVolume | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.hostPath), has(self.persistentVolumeClaim), has(self.configMap), has(self.secret), "
            "has(self.emptyDir)].filter(x, x).size() == 1",
            "template.volumes[]: set exactly one of hostPath, persistentVolumeClaim, configMap, secret and emptyDir",
        ),
        Rule(
            "!(self.name in ['model', 'ticket-key', 'api-keys', 'credentials', 'shm', 'tmp'])",
            "template.volumes[].name: model, ticket-key, api-keys, credentials, shm and tmp are the operator's; "
            "rename it",
        ),
    )


class VolumeMount(ApiModel):
    name: Annotated[str, Field(min_length=1, max_length=63)]
    mount_path: Path
    sub_path: Text | None = None
    read_only: bool = False


class PodUser(ApiModel):
    run_as_user: Annotated[int, Field(ge=0)] = Field(65532, description="0 is root: only where a volume demands it.")
    run_as_group: Annotated[int, Field(ge=0)] = 65532
    fs_group: Annotated[int, Field(ge=0)] = 65532


class PodTemplate(ApiModel):
    image: Text | None = Field(None, description="Default: the image the operator was installed with.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[list[Name], Field(max_length=8)] = Field([])
    resources: Resources = section(Resources, "CPU and memory; GPUs come from parallelism, RDMA devices from rdma.")
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field([], json_schema_extra=keyed("name"))
    labels: StringMap = Field({})
    annotations: StringMap = Field({})
    node_selector: StringMap = Field({})
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field([])
    affinity: dict[str, Any] | None = Field(
        None,
        description="A Kubernetes affinity, passed on as it is.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    volumes: Annotated[list[Volume], Field(max_length=16)] = Field([], json_schema_extra=keyed("name"))
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=16)] = Field([], json_schema_extra=keyed("mountPath"))
    service_account_name: Name | None = Field(None, description="Default: one without any right.")
    scheduler_name: Name | None = None
    queue_name: Name | None = Field(None, description="Volcano queue (schedulerName volcano), else Kueue local queue.")
    priority_class_name: Name | None = None
    runtime_class_name: Name | None = None
    security_context: PodUser = section(PodUser, "User that the containers run as.")
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=7200)] = Field(
        330, description="How long running answers may go on when a pod is stopped."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && "
            "self.volumes.exists(v, v.name == m.name))",
            "template.volumeMounts[].name must name an entry of template.volumes: add the volume",
        ),
        Rule(
            "!has(self.volumeMounts) || "
            "!self.volumeMounts.exists(m, m.mountPath.matches('^/(models|etc/tandem|tmp|dev/shm)(/.*)?$'))",
            "template.volumeMounts[].mountPath: /models, /etc/tandem, /tmp and /dev/shm are the operator's; "
            "mount it elsewhere",
        ),
        Rule(
            "!has(self.labels) || !self.labels.exists(k, k.startsWith('serving.tandem.dev/') || "
            "k.startsWith('app.kubernetes.io/'))",
            "template.labels: serving.tandem.dev/ and app.kubernetes.io/ belong to the operator; remove them",
        ),
        Rule(
            "!has(self.resources.limits) || !self.resources.limits.exists(name, name.contains('rdma'))",
            "template.resources.limits: ask for RDMA devices with rdma, which sets all that belongs to it",
        ),
    )


class EngineTemplate(PodTemplate):
    startup_timeout_seconds: Annotated[int, Field(ge=60, le=86400)] = Field(
        3600, description="How long loading the model may take after the download."
    )
