"""Specs the API server must refuse, with what its answer must say. Run here against the generated schema and CEL rules
(`crd_admission`), and by the cluster tests against a real API server."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

GOOD: dict[str, Any] = {
    "apiVersion": "serving.tandem.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {"model": {"preset": "Qwen3-32B", "region": "cn-beijing"}},
}
CLB = "service.beta.kubernetes.io/volcengine-loadbalancer-"


@dataclass(frozen=True)
class BadSpec:
    name: str
    body: dict[str, Any]
    says: str
    """Part of the answer: the field and, for rules, the remedy."""


def service(*changes: tuple[str, Any], name: str = "chat") -> dict[str, Any]:
    """GOOD with values set at dotted paths below spec; None removes."""
    body = copy.deepcopy(GOOD)
    body["metadata"]["name"] = name
    for path, value in changes:
        *parents, last = path.split(".")
        target = body["spec"]
        for part in parents:
            target = target.setdefault(part, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return body


def uri(value: str, *changes: tuple[str, Any]) -> dict[str, Any]:
    return service(("model.preset", None), ("model.uri", value), *changes)


def bad(name: str, says: str, *changes: tuple[str, Any]) -> BadSpec:
    return BadSpec(name, service(*changes), says)


def bad_uri(name: str, says: str, value: str, *changes: tuple[str, Any]) -> BadSpec:
    return BadSpec(name, uri(value, *changes), says)


CACHE, T = "model.storage.cache", "prefill.template"
FREE_ARGS = "extraArgs: each entry must be --FLAG=VALUE"

BAD = [
    BadSpec("name too long", service(name="a" * 36), "metadata.name must be at most 35"),
    BadSpec("name starts with a digit", service(name="3b"), "start with a letter"),
    BadSpec("name with a dot", service(name="qwen2.5"), "metadata.name must be at most 35"),
    BadSpec("no model", {**GOOD, "spec": {}}, "model"),
    BadSpec("no spec", {k: v for k, v in GOOD.items() if k != "spec"}, "spec"),
    bad("preset and uri", "model: set exactly one of preset and uri", ("model.uri", "s3://b/p")),
    bad("neither preset nor uri", "model: set exactly one of preset and uri", ("model.preset", None)),
    bad("empty preset", "spec.model.preset", ("model.preset", "")),
    bad_uri("scheme", "model.uri must start with tos://", "https://host/model"),
    bad_uri("no scheme", "model.uri must start with tos://", "/vepfs/model"),
    bad_uri("empty rest", "model.uri must start with tos://", "s3://"),
    bad_uri("parent folder", "model.uri must not contain '..'", "hostPath:///data/../etc"),
    bad_uri("relative hostPath", "model.uri with hostPath:// needs an absolute path", "hostPath://data/x"),
    bad_uri("hub without organisation", "hf://ORG/NAME", "hf://Qwen3-32B"),
    bad_uri("claim in capitals", "model.uri with pvc://", "pvc://Models/qwen"),
    bad_uri("tos without region", "model.region is required", "tos://b/p/", ("model.region", None)),
    bad_uri("revision of a bucket", "model.revision is for hf://", "s3://b/p", ("model.revision", "main")),
    bad("revision of a preset", "model.revision is for hf://", ("model.revision", "main")),
    bad("region with a slash", "spec.model.region", ("model.region", "cn/beijing")),
    bad("served name with a blank", "spec.model.servedName", ("model.servedName", "my model")),
    bad("unknown model field", "spec.model.path", ("model.path", "/x")),
    bad("anonymous with keys", "storage.anonymous and storage.secretRef",
        ("model.storage", {"anonymous": True, "secretRef": {"name": "k"}})),
    bad("secretRef without name", "spec.model.storage.secretRef.name", ("model.storage.secretRef", {})),
    bad("endpoint without scheme", "storage.endpoint must be a URL", ("model.storage.endpoint", "minio:9000")),
    bad("endpoint with password", "storage.endpoint must be a URL", ("model.storage.endpoint", "https://a:b@host")),
    bad("endpoint and VPC", "storage.network VPC chooses the endpoint",
        ("model.storage", {"endpoint": "https://h", "network": "VPC"})),
    bad_uri("VPC outside TOS", "model.storage.network VPC is for tos://", "s3://b/p", ("model.storage.network", "VPC")),
    bad("network", "spec.model.storage.network", ("model.storage.network", "Private")),
    bad("cache type", "spec.model.storage.cache.type", (CACHE, {"type": "NFS"})),
    bad("HostPath cache without path", "storage.cache.path is required", (CACHE, {"type": "HostPath"})),
    bad("relative cache path", "spec.model.storage.cache.path", (CACHE, {"type": "HostPath", "path": "data"})),
    bad("path of a PVC cache", "storage.cache.path is required",
        (CACHE, {"type": "PVC", "claimName": "c", "path": "/x"})),
    bad("PVC cache without claim", "storage.cache.claimName is required", (CACHE, {"type": "PVC"})),
    bad("size of a HostPath cache", "storage.cache.sizeLimit is for",
        (CACHE, {"type": "HostPath", "path": "/x", "sizeLimit": "1Gi"})),
    bad("size that is none", "spec.model.storage.cache.sizeLimit", (CACHE, {"sizeLimit": "lots"})),
    bad_uri("cache of a mounted path", "nothing is downloaded from pvc://", "hostPath:///data/qwen",
            (CACHE, {"type": "HostPath", "path": "/x"})),
    bad_uri("keys for a claim", "nothing is downloaded from pvc://", "pvc://models/qwen",
            ("model.storage.secretRef", {"name": "k"})),
    bad("replicas and scaling", "replicas and scaling exclude each other",
        ("prefill.replicas", 2), ("prefill.scaling", {"maxReplicas": 4})),
    bad("negative replicas", "spec.prefill.replicas", ("prefill.replicas", -1)),
    bad("replicas as text", "spec.decode.replicas", ("decode.replicas", "2")),
    bad("no decode pod", "decode.replicas must be at least 1", ("decode.replicas", 0)),
    bad("scaling without maximum", "spec.decode.scaling.maxReplicas", ("decode.scaling", {"minReplicas": 1})),
    bad("minimum above maximum", "scaling.minReplicas must not be above",
        ("decode.scaling", {"minReplicas": 5, "maxReplicas": 4})),
    bad("minimum of zero", "spec.decode.scaling.minReplicas", ("decode.scaling", {"minReplicas": 0, "maxReplicas": 4})),
    bad("unknown metric", "spec.decode.scaling.targets",
        ("decode.scaling", {"maxReplicas": 2, "targets": [{"metric": "gpu", "average": 1}]})),
    bad("no scaling target", "spec.decode.scaling.targets", ("decode.scaling", {"maxReplicas": 2, "targets": []})),
    bad("tensor of 3", "parallelism.tensor must be 1, 2, 4 or 8", ("prefill.parallelism.tensor", 3)),
    bad("tensor of 0", "parallelism.tensor must be 1, 2, 4 or 8", ("decode.parallelism.tensor", 0)),
    bad("tensor of 16", "parallelism.tensor must be 1, 2, 4 or 8", ("decode.parallelism.tensor", 16)),
    bad("no surge and none unavailable", "must not both be 0", ("prefill.rollout", {"maxSurge": 0})),
    bad("negative surge", "spec.prefill.rollout.maxSurge", ("prefill.rollout.maxSurge", -1)),
    bad("rollout strategy", "spec.decode.rollout.strategy", ("decode.rollout.strategy", "OnDelete")),
    bad("too many RDMA devices", "spec.prefill.rdma", ("prefill.rdma", 17)),
    bad("RDMA as a resource", "ask for RDMA devices with rdma",
        (f"{T}.resources.limits", {"example.com/rdma": 4})),
    bad("RDMA on the CPU", "set prefill.rdma and decode.rdma to 0", ("engine.accelerator", "none"), ("decode.rdma", 1)),
    bad("fp8 on the CPU", "engine.accelerator none has no fp8",
        ("engine.accelerator", "none"), ("engine.quantization", "fp8")),
    bad("accelerator", "spec.engine.accelerator", ("engine.accelerator", "tpu")),
    bad("context of 1", "spec.engine.maxModelLen", ("engine.maxModelLen", 1)),
    bad("quantization", "spec.engine.quantization", ("engine.quantization", "int3")),
    bad("KV dtype", "spec.engine.kvCacheDtype", ("engine.kvCacheDtype", "int8")),
    bad("unknown engine flag", FREE_ARGS, ("engine.extraArgs", ["--max-seqs=3"])),
    bad("flag of the operator", FREE_ARGS, ("engine.extraArgs", ["--model=/x"])),
    bad("flag with a blank", FREE_ARGS, ("engine.extraArgs", ["--max-num-seqs 3"])),
    bad("flag of a role", FREE_ARGS, ("decode.extraArgs", ["--role=prefill"])),
    bad("flag without dashes", FREE_ARGS, ("prefill.extraArgs", ["max-num-seqs=3"])),
    bad("environment with value and source", "set exactly one of value and valueFrom",
        (f"{T}.env", [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}])),
    bad("environment without value", "set exactly one of value and valueFrom", (f"{T}.env", [{"name": "A"}])),
    bad("environment from two sources", "exactly one of secretKeyRef",
        (f"{T}.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"},
                                                  "secretKeyRef": {"name": "s", "key": "k"}}}])),
    bad("environment of the operator", "set by the operator; remove it",
        (f"{T}.env", [{"name": "POD_IP", "value": "1"}])),
    bad("environment with a credential", "credentials belong into a Secret",
        (f"{T}.env", [{"name": "HF_TOKEN", "value": "hf_x"}])),
    bad("environment name", "spec.prefill.template.env", (f"{T}.env", [{"name": "A-B", "value": "1"}])),
    bad("volume of two kinds", "set exactly one of hostPath, persistentVolumeClaim",
        (f"{T}.volumes", [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}])),
    bad("volume of no kind", "set exactly one of hostPath, persistentVolumeClaim", (f"{T}.volumes", [{"name": "v"}])),
    bad("volume with the operator's name", "are the operator's; rename it",
        (f"{T}.volumes", [{"name": "model", "emptyDir": {}}])),
    bad("volume with the name of the keys", "are the operator's; rename it",
        ("gateway.template.volumes", [{"name": "api-keys", "emptyDir": {}}])),
    bad("mount without volume", "must name an entry of template.volumes",
        (f"{T}.volumeMounts", [{"name": "v", "mountPath": "/v"}])),
    bad("mount over the models", "are the operator's; mount it elsewhere",
        (f"{T}.volumes", [{"name": "v", "emptyDir": {}}]),
        (f"{T}.volumeMounts", [{"name": "v", "mountPath": "/models/x"}])),
    bad("label of the operator", "belong to the operator; remove them",
        (f"{T}.labels", {"serving.tandem.dev/role": "decode"})),
    bad("Exists with a value", "template.tolerations[]",
        (f"{T}.tolerations", [{"key": "a", "operator": "Exists", "value": "b"}])),
    bad("Equal without a key", "template.tolerations[]", (f"{T}.tolerations", [{"value": "b"}])),
    bad("quantity that is none", "spec.decode.template.resources.requests",
        ("decode.template.resources.requests", {"cpu": "four"})),
    bad("short grace period", "spec.decode.template.terminationGracePeriodSeconds",
        ("decode.template.terminationGracePeriodSeconds", 5)),
    bad("unknown template field", "spec.decode.template.hostNetwork", ("decode.template.hostNetwork", True)),
    bad("no gateway", "spec.gateway.replicas", ("gateway.replicas", 0)),
    bad("gateway strategy", "spec.gateway.strategy", ("gateway.strategy", "Random")),
    bad("NodePort", "spec.gateway.service.type", ("gateway.service.type", "NodePort")),
    bad("class of a ClusterIP", "need type LoadBalancer", ("gateway.service.loadBalancerClass", "volcengine.com/clb")),
    bad("source ranges of a ClusterIP", "need type LoadBalancer",
        ("gateway.service.loadBalancerSourceRanges", ["10.0.0.0/8"])),
    bad("CLB without a subnet", "subnet-id (a new load balancer)",
        ("gateway.service", {"type": "LoadBalancer", "loadBalancerClass": "volcengine.com/clb"})),
    bad("CLB with other annotations", "subnet-id (a new load balancer)",
        ("gateway.service", {"type": "LoadBalancer", "loadBalancerClass": "volcengine.com/clb",
                             "annotations": {f"{CLB}name": "x"}})),
    bad("keys without a Secret", "spec.gateway.auth.apiKeySecretRef.name", ("gateway.auth.apiKeySecretRef", {})),
    bad("suspend as text", "spec.suspend", ("suspend", "yes")),
    bad("unknown section", "spec.router", ("router", {})),
]  # fmt: skip

GOOD_SPECS = {
    "minimal": GOOD,
    "tos": uri("tos://bucket/Qwen/Qwen3-32B/"),
    "tos by endpoint": uri("tos://b/p", ("model.region", None), ("model.storage.endpoint", "https://tos.example.com")),
    "vePFS by environment": uri(
        "hostPath://$VEPFS_MODEL_PATH",
        (f"{T}.env", [{"name": "VEPFS_MODEL_PATH", "value": "/vepfs/q"}]),
        ("decode.template.env", [{"name": "VEPFS_MODEL_PATH", "value": "/vepfs/q"}]),
    ),
    "claim": uri("pvc://models/Qwen3-32B", ("model.region", None)),
    "environment that only sounds like a credential": service(
        (f"{T}.env", [{"name": "TOKENIZERS_PARALLELISM", "value": "false"}]),
    ),
    "hub": uri("hf://Qwen/Qwen3-32B", ("model.revision", "main")),
    "autoscaled": service(
        ("decode.scaling", {"minReplicas": 1, "maxReplicas": 8, "targets": [{"metric": "cpu", "average": 80}]})
    ),
    "no spare GPUs": service(("prefill.rollout", {"strategy": "Recreate", "maxSurge": 0})),
    "local prefill only": service(("prefill.replicas", 0)),
    "Volcengine": service(
        ("prefill.rdma", 4),
        ("gateway.service", {"type": "LoadBalancer", "loadBalancerClass": "volcengine.com/clb",
                             "annotations": {f"{CLB}subnet-id": "subnet-1"}}),
        ("monitoring.labels", {"volcengine.vmp": "true"}),
    ),
    "flags": service(("engine.extraArgs", ["--max-num-seqs=128", "--no-enable-prefix-caching"])),
    "volumes": service(
        (f"{T}.volumes", [{"name": "data", "hostPath": {"path": "/data"}}]),
        (f"{T}.volumeMounts", [{"name": "data", "mountPath": "/data"}]),
    ),
}  # fmt: skip
