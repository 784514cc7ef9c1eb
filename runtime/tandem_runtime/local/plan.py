"""The processes of a local fleet and their command lines. Pure: ports, cores and memory are arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tandem_contract import env
from tandem_contract.flags import FlagError, GatewayFlags, ServeFlags, option_name, to_argv
from tandem_contract.status import Role

from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.child import Program

GIB = 1024**3
POD_OVERHEAD = 3 * GIB // 4
"""Of one CPU pod beside weights and KV pages: 743 MiB unique to its two processes with the demo model."""
KV_SHARE = 0.6
"""Of what weights and overhead leave, for all pods together; the rest is other programs' and the file cache's."""
POD_HOST = "127.0.0.1"
FLEET_OWNS = (
    *("model", "role", "host", "port", "metrics_port", "handoff_port", "kv_data_port"),
    *("advertise_host", "ticket_key_file", "api_key_file"),
)
"""Engine flags that are the fleet's to decide."""
BEFORE = ("model", "host", "port", "metrics_port")
"""Those of them that may be given before `--`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    engine: ServeFlags
    """What every pod shares: the model and the flags after `--`."""
    prefill: int
    decode: int
    host: str
    port: int
    metrics_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    cores: int
    free_memory: int
    """Bytes."""
    has_gpu: bool
    shares_memory: bool
    """Whether the kernel has what `--kv-transport ipc` needs."""


def engine_defaults(machine: Machine) -> list[str]:
    """Flags of `tandem serve` that pods of a fleet have unless others stand after `--`."""
    # On a card it has not run yet.
    return ["--kv-transport=ipc"] if machine.shares_memory and not machine.has_gpu else []


def check_options(options: FleetOptions) -> None:
    """Raises `FlagError`."""
    if options.decode < 1:
        raise FlagError("--decode must be at least 1: decode pods answer the clients")
    if options.prefill < 0:
        raise FlagError("--prefill must not be negative")


def check_engine_argv(argv: Sequence[str]) -> None:
    """What stands after `--`. Raises `FlagError`."""
    given = {word.partition("=")[0] for word in argv}
    for name in FLEET_OWNS:
        if (option := option_name(name)) in given:
            remedy = "give it before --, for the fleet" if name in BEFORE else "leave it out"
            raise FlagError(f"{option} cannot stand after --: the fleet decides it for each pod; {remedy}")


def plan_fleet(
    options: FleetOptions,
    machine: Machine,
    *,
    weight_bytes: int,
    ports: list[int],
    ticket_key_file: Path,
    launcher: tuple[str, ...],
) -> list[Program]:
    """The gateway, then the pods. `ports`: `ports_needed` free ones; `launcher`: the argv of `tandem`."""
    engine = _with_shares(options, machine, weight_bytes)
    free = iter(ports)
    pods: list[tuple[str, ServeFlags]] = []
    roles: list[tuple[Role, int]] = [("decode", options.decode), ("prefill", options.prefill)]
    for role, count in roles:
        threads = split_threads(machine.cores, options.prefill, options.decode)[role]
        for index in range(count):
            flags = replace(
                engine,
                role=role,
                host=POD_HOST,
                advertise_host=POD_HOST,
                port=next(free),
                metrics_port=next(free),
                handoff_port=next(free),
                kv_data_port=0,
                ticket_key_file=str(ticket_key_file),
                cpu_threads=engine.cpu_threads or threads,
            )
            pods.append((f"{role}-{index}", flags))
    gateway = GatewayFlags(
        host=options.host,
        port=options.port,
        metrics_port=options.metrics_port,
        decode=tuple(_url(flags) for _, flags in pods if flags.role == "decode"),
        prefill=tuple(_url(flags) for _, flags in pods if flags.role == "prefill"),
        ticket_key_file=str(ticket_key_file),
        log_format=engine.log_format,
        drain_timeout=engine.drain_timeout,
    )
    return [
        Program("gateway", (*launcher, "gateway", *to_argv(gateway)), _ready_url(options.host, options.metrics_port)),
        *(
            Program(
                name,
                (*launcher, "serve", *to_argv(flags)),
                _ready_url(POD_HOST, flags.metrics_port),
                env={env.POD_NAME: name},
            )
            for name, flags in pods
        ),
    ]


def reachable(host: str) -> str:
    """The URL host under which this machine reaches what listens on `host`."""
    if host in ("0.0.0.0", "::", ""):
        return POD_HOST
    return f"[{host}]" if ":" in host else host


def ports_needed(options: FleetOptions) -> int:
    return 3 * _pods(options)


def split_threads(cores: int, prefill: int, decode: int) -> dict[Role, int]:
    """Threads of one pod of each role; a decode pod gets twice a prefill pod's, which works in bursts."""
    share = cores / (prefill + 2 * decode)
    return {"prefill": max(1, int(share)), "decode": max(1, math.ceil(2 * share))}


def check_memory(options: FleetOptions, machine: Machine, weight_bytes: int) -> None:
    """Raises `StartupError` when the pods' weights alone cannot fit; the KV cache is the pods' own question."""
    left = _memory_left(options, machine, weight_bytes)
    if left < 0 and not _on_gpu(options.engine, machine):
        raise StartupError(
            f"{options.engine.model} needs {(machine.free_memory - left) / GIB:.1f} GiB for {_pods(options)} pods "
            f"({weight_bytes / GIB:.1f} GiB of weights each) and {machine.free_memory / GIB:.1f} GiB are free; "
            "start fewer pods or choose a smaller model"
        )


def _with_shares(options: FleetOptions, machine: Machine, weight_bytes: int) -> ServeFlags:
    """Each pod's part of the memory: a pod would otherwise size its KV cache as if it were alone."""
    engine, pods = options.engine, _pods(options)
    bare = ServeFlags(model=engine.model)
    if engine.kv_cache_memory is not None or engine.gpu_memory_utilization != bare.gpu_memory_utilization:
        return engine
    if _on_gpu(engine, machine):
        return replace(engine, gpu_memory_utilization=round(bare.gpu_memory_utilization / pods, 3))
    share = int(KV_SHARE * _memory_left(options, machine, weight_bytes) / pods)
    return replace(engine, kv_cache_memory=f"{share // 1024**2}MiB")


def _memory_left(options: FleetOptions, machine: Machine, weight_bytes: int) -> int:
    return machine.free_memory - _pods(options) * (weight_bytes + POD_OVERHEAD)


def _pods(options: FleetOptions) -> int:
    return options.prefill + options.decode


def _on_gpu(engine: ServeFlags, machine: Machine) -> bool:
    return engine.device == "cuda" or (engine.device == "auto" and machine.has_gpu)


def _url(flags: ServeFlags) -> str:
    return f"http://{flags.host}:{flags.port}"


def _ready_url(host: str, port: int) -> str:
    return f"http://{reachable(host)}:{port}/readyz"
