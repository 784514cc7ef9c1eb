"""The StatefulSet of one role and revision: download, engine, devices."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NoReturn

from tandem_contract import labels, ports
from tandem_contract.flags import FlagError, ServeFlags, add_arguments, from_namespace, to_argv

from tandem_operator.api.roles import RoleSpec
from tandem_operator.api.service import InvalidSpec
from tandem_operator.plan import names
from tandem_operator.plan.context import EngineRole, Installation, Manifest, Service
from tandem_operator.plan.model import CREDENTIALS, MODELS, ModelPlan, find_preset
from tandem_operator.plan.observed import CAME_UP, RECORDED_TEMPLATE, WANTED
from tandem_operator.plan.pods import (
    LOCKED_DOWN,
    TICKET_KEYS,
    container,
    drain_seconds,
    pod_template,
    resources,
    serving,
    without_devices,
)
from tandem_operator.plan.ticket_keys import FILE
from tandem_operator.platform import RdmaDevices
from tandem_operator.presets import Preset


def engine_set(
    service: Service,
    role: EngineRole,
    revision: str,
    model: ModelPlan,
    installation: Installation,
    *,
    replicas: int | None,
    recorded: Manifest | None,
    wanted: int | None,
    came_up: bool,
) -> Manifest:
    """`replicas` None: an autoscaler owns them. `recorded` wins over what this operator would render today."""
    name = names.engine_set(service.name, role, revision)
    tags = names.selector(service, role) | {labels.REVISION: revision}
    template = recorded or engine_template(service, role, revision, model, installation)
    manifest = names.child(
        service,
        "apps/v1",
        "StatefulSet",
        name,
        role,
        spec={
            "serviceName": names.role(service.name, role),
            "podManagementPolicy": "Parallel",
            # Templates are never edited: another template is another revision, with a set of its own.
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": tags},
            "template": template,
        },
    )
    manifest["metadata"]["labels"] |= tags
    record = json.dumps(template, sort_keys=True, separators=(",", ":"))
    manifest["metadata"]["annotations"] = {RECORDED_TEMPLATE: record}
    if wanted is not None:
        manifest["metadata"]["annotations"][WANTED] = str(wanted)
    if came_up:
        manifest["metadata"]["annotations"][CAME_UP] = "true"
    if replicas is not None:
        manifest["spec"]["replicas"] = replicas
    return manifest


def engine_template(
    service: Service, role: EngineRole, revision: str, model: ModelPlan, installation: Installation
) -> Manifest:
    spec: RoleSpec = getattr(service.spec, role)
    template = spec.template
    flags = serve_flags(service, role, model, installation)
    preset = find_preset(service.spec.model, installation.presets)
    needs = getattr(preset, role) if preset else None
    devices = {} if service.spec.engine.accelerator == "none" else {"nvidia.com/gpu": str(flags.tensor_parallel_size)}
    rdma = _rdma(role, spec, installation)
    if rdma:
        devices[rdma.resource_name] = str(spec.rdma)
    mount = {"name": "model", "mountPath": MODELS} | ({"subPath": model.sub_path} if model.sub_path else {})
    engine = container(
        "engine",
        template,
        image=template.image or installation.engine_image,
        args=["serve", *to_argv(flags)],
        env_=[
            ("HOME", "/tmp"),
            ("TRITON_CACHE_DIR", "/tmp/triton"),
            *([("NCCL_IB_GID_INDEX", str(rdma.gid_index))] if rdma and rdma.gid_index is not None else []),
        ],
        mounts=[
            mount | {"readOnly": True},
            {"name": "ticket-key", "mountPath": TICKET_KEYS, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        resources=resources(
            template,
            requests={"cpu": needs.cpu, "memory": needs.memory} if needs else {"cpu": "2", "memory": "4Gi"},
            limits=devices,
        ),
        **serving(template.startup_timeout_seconds),
    )
    engine["ports"].append({"name": "handoff", "containerPort": ports.HANDOFF})
    if rdma:
        # Memory that devices read and write must not be swapped.
        engine["securityContext"] = LOCKED_DOWN | {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
    volumes = [
        {"name": "model", **model.volume},
        {"name": "ticket-key", "secret": {"secretName": names.ticket_key(service.name)}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *([{"name": "credentials", "secret": {"secretName": model.credentials}}] if model.credentials else []),
    ]
    attached = rdma.network_annotation if rdma else None
    networks = {attached: json.dumps([rdma.network] * spec.rdma)} if rdma and attached else {}
    return pod_template(
        service,
        role,
        template,
        container=engine,
        init_containers=[_fetch(spec, model, installation, engine["resources"])],
        volumes=volumes,
        labels_={labels.REVISION: revision},
        annotations={"kubectl.kubernetes.io/default-container": "engine", **networks},
        service_account=names.engine_account(service.name),
        token=False,
    )


def _rdma(role: EngineRole, spec: RoleSpec, installation: Installation) -> RdmaDevices | None:
    if spec.rdma and installation.platform.rdma is None:
        raise InvalidSpec(
            f"spec.{role}.rdma: this installation knows no RDMA devices: set rdma to 0, or platform.rdma in the "
            "values of the operator's chart"
        )
    return installation.platform.rdma if spec.rdma else None


def serve_flags(service: Service, role: EngineRole, model: ModelPlan, installation: Installation) -> ServeFlags:
    """Raises `InvalidSpec` for a context beyond the preset's, and for extraArgs that `tandem serve` would refuse."""
    spec: RoleSpec = getattr(service.spec, role)
    engine = service.spec.engine
    preset = find_preset(service.spec.model, installation.presets)
    base = ServeFlags(
        model=model.folder,
        served_model_name=(model.served_name,),
        role=role,
        tensor_parallel_size=spec.parallelism.tensor or (getattr(preset, role).tensor if preset else 1),
        max_model_len=engine.max_model_len or (preset.max_model_len if preset else None),
        rope_scaling=_rope_scaling(engine.max_model_len, preset, [*engine.extra_args, *spec.extra_args]),
        quantization=engine.quantization,
        kv_cache_dtype=engine.kv_cache_dtype,
        device="cpu" if engine.accelerator == "none" else "auto",
        drain_timeout=drain_seconds(spec.template),
        ticket_key_file=f"{TICKET_KEYS}/{FILE}",
        log_format="json",
    )
    parser = _Parser(prog="tandem serve", allow_abbrev=False)
    add_arguments(parser, ServeFlags)
    try:
        return from_namespace(ServeFlags, parser.parse_args([*to_argv(base), *engine.extra_args, *spec.extra_args]))
    except (FlagError, argparse.ArgumentError) as error:
        raise InvalidSpec(f"spec.engine.extraArgs and spec.{role}.extraArgs: {error}") from error


def _rope_scaling(wanted: int | None, preset: Preset | None, extra_args: Sequence[str]) -> str | None:
    """YaRN where the service wants a longer context than the preset's model has, and only there: it costs quality."""
    if wanted is None or preset is None or wanted <= preset.max_model_len:
        return None
    if any(argument.startswith("--rope-scaling") for argument in extra_args):
        return None
    longest = preset.yarn.max_model_len if preset.yarn else preset.max_model_len
    if preset.yarn is None or wanted > longest:
        raise InvalidSpec(
            f"spec.engine.maxModelLen {wanted} exceeds the {longest} tokens that the preset's model is known to "
            "handle; lower it, or give --rope-scaling in extraArgs"
        )
    return f"yarn:{wanted / preset.yarn.original_length}:{preset.yarn.original_length}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


def _fetch(spec: RoleSpec, model: ModelPlan, installation: Installation, engine: Manifest) -> Manifest:
    mount = {"name": "model", "mountPath": MODELS} | ({"subPath": model.sub_path} if model.sub_path else {})
    mounts: list[Manifest] = [mount | ({} if model.downloads else {"readOnly": True})]
    if model.credentials:
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS, "readOnly": True})
    fetch = container(
        "fetch",
        spec.template,
        image=installation.small_image,
        args=["fetch", *to_argv(model.fetch)],
        env_=[("HOME", "/tmp")],
        mounts=mounts,
        # A pod needs the larger of what its init container and its engine ask for: so the download adds nothing.
        # Without limits no pod would be Guaranteed, and a quota of limits would refuse them all.
        resources=without_devices(engine),
    )
    if model.downloads and "hostPath" in model.volume:
        # The kubelet makes the folder for root; root without capabilities can write there and nowhere else.
        fetch["securityContext"] = LOCKED_DOWN | {"runAsUser": 0, "runAsNonRoot": False}
    return fetch
