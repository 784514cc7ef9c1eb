"""The plan of a local fleet: what each process is told."""

from dataclasses import replace
from pathlib import Path

import pytest
from tandem_contract.flags import FlagError, GatewayFlags, ServeFlags, parse
from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.plan import (
    GIB,
    FleetOptions,
    Machine,
    check_engine_argv,
    check_memory,
    check_options,
    engine_defaults,
    plan_fleet,
    ports_needed,
    reachable,
    split_threads,
)

CPU = Machine(cores=8, free_memory=64 * GIB, has_gpu=False, shares_memory=True)
GPU = replace(CPU, has_gpu=True)
OPTIONS = FleetOptions(engine=ServeFlags(model="/m"), prefill=2, decode=3, host="0.0.0.0", port=8000, metrics_port=8080)


def plan(options: FleetOptions, machine: Machine = CPU) -> tuple[GatewayFlags, list[ServeFlags]]:
    ports = list(range(1, ports_needed(options) + 1))
    gateway, *pods = plan_fleet(
        options, machine, weight_bytes=GIB // 4, ports=ports, ticket_key_file=Path("/k"), launcher=("tandem",)
    )
    assert gateway.argv[:2] == ("tandem", "gateway")
    assert all(pod.argv[:2] == ("tandem", "serve") for pod in pods)
    assert len({pod.name for pod in pods}) == len(pods)
    return parse(GatewayFlags, gateway.argv[2:]), [parse(ServeFlags, pod.argv[2:]) for pod in pods]


def test_the_gateway_knows_every_pod_by_its_role() -> None:
    gateway, pods = plan(OPTIONS)
    assert list(gateway.decode) == [f"http://127.0.0.1:{pod.port}" for pod in pods if pod.role == "decode"]
    assert list(gateway.prefill) == [f"http://127.0.0.1:{pod.port}" for pod in pods if pod.role == "prefill"]
    assert (len(gateway.decode), len(gateway.prefill)) == (3, 2)
    assert (gateway.host, gateway.port, gateway.metrics_port) == ("0.0.0.0", 8000, 8080)


def test_pods_share_no_port_listen_on_loopback_and_trust_the_gateways_key() -> None:
    gateway, pods = plan(OPTIONS)
    taken = [port for pod in pods for port in (pod.port, pod.metrics_port, pod.handoff_port)]
    assert len(set(taken)) == len(taken)
    assert {(pod.host, pod.advertise_host, pod.kv_data_port) for pod in pods} == {("127.0.0.1", "127.0.0.1", 0)}
    assert {gateway.ticket_key_file, *(pod.ticket_key_file for pod in pods)} == {"/k"}


def test_the_gateway_drains_as_long_as_the_pods() -> None:
    gateway, pods = plan(replace(OPTIONS, engine=ServeFlags(model="/m", drain_timeout=7.0, log_format="json")))
    assert {(flags.drain_timeout, flags.log_format) for flags in (gateway, *pods)} == {(7.0, "json")}


def test_engine_flags_reach_every_pod() -> None:
    engine = ServeFlags(model="/m", max_model_len=99, cpu_threads=7, kv_cache_memory="1GiB")
    _, pods = plan(replace(OPTIONS, engine=engine))
    assert {(pod.max_model_len, pod.cpu_threads, pod.kv_cache_memory) for pod in pods} == {(99, 7, "1GiB")}


def test_pods_divide_the_memory() -> None:
    _, pods = plan(OPTIONS, replace(CPU, free_memory=10 * GIB))
    assert {pod.kv_cache_memory for pod in pods} == {"614MiB"}, "60 % of what 5 x 1 GiB leave, divided by 5"
    _, pods = plan(OPTIONS, GPU)
    assert {(pod.gpu_memory_utilization, pod.kv_cache_memory) for pod in pods} == {(0.18, None)}


@pytest.mark.parametrize(
    ("cores", "prefill", "decode", "threads"),
    [
        (2, 1, 1, {"prefill": 1, "decode": 2}),
        (12, 1, 1, {"prefill": 4, "decode": 8}),
        (12, 2, 2, {"prefill": 2, "decode": 4}),
        (1, 4, 4, {"prefill": 1, "decode": 1}),
        (8, 0, 1, {"prefill": 4, "decode": 8}),
    ],
)
def test_decode_pods_get_twice_the_threads(cores: int, prefill: int, decode: int, threads: dict[str, int]) -> None:
    assert split_threads(cores, prefill, decode) == threads


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (replace(OPTIONS, decode=0), "--decode"),
        (replace(OPTIONS, prefill=-1), "--prefill"),
    ],
)
def test_impossible_options_are_named(options: FleetOptions, flag: str) -> None:
    with pytest.raises(FlagError, match=f"^{flag} "):
        check_options(options)


@pytest.mark.parametrize(
    ("argv", "remedy"),
    [
        (["--host", "0.0.0.0"], "before --"),
        (["--port=8000"], "before --"),
        (["--seed=3", "--metrics-port", "8080"], "before --"),
        (["--model=/other"], "before --"),
        (["--role=both"], "leave it out"),
        (["--api-key-file=/k"], "leave it out"),
    ],
)
def test_what_the_fleet_decides_is_refused_after_the_dashes(argv: list[str], remedy: str) -> None:
    """Symptom: `-- --host 0.0.0.0` was accepted and ignored. Cause: values were compared with the defaults."""
    flag = next(word.partition("=")[0] for word in argv if not word.startswith("--seed") and word.startswith("--"))
    with pytest.raises(FlagError, match=f"^{flag} cannot stand after --: .*{remedy}"):
        check_engine_argv(argv)


def test_engine_flags_may_stand_after_the_dashes() -> None:
    check_engine_argv(["--max-model-len=512", "--rope-scaling", "none", "--chat-template=/t", "--no-cuda-graphs"])


def test_pods_on_the_cpu_share_memory_where_the_kernel_can() -> None:
    """Not on a card, where it has not run yet; what stands after `--` comes later and wins."""
    machines = [CPU, GPU, replace(CPU, shares_memory=False)]
    assert [engine_defaults(machine) for machine in machines] == [["--kv-transport=ipc"], [], []]
    assert parse(ServeFlags, ["--model=/m", *engine_defaults(CPU), "--kv-transport=tcp"]).kv_transport == "tcp"


def test_too_little_memory_says_how_much_is_missing() -> None:
    with pytest.raises(StartupError, match=r"^/m needs 53\.8 GiB for 5 pods \(10\.0 GiB of weights each\) and 40\.0"):
        check_memory(OPTIONS, replace(CPU, free_memory=40 * GIB), weight_bytes=10 * GIB)
    check_memory(OPTIONS, CPU, weight_bytes=10 * GIB)
    check_memory(OPTIONS, replace(GPU, free_memory=0), weight_bytes=10 * GIB)


def test_reachable_host() -> None:
    assert [reachable(host) for host in ("0.0.0.0", "::", "10.0.0.1", "::1")] == [
        *("127.0.0.1", "127.0.0.1", "10.0.0.1", "[::1]")
    ]
