"""Real `tandem` processes for tests: engine pods and gateways on free loopback ports, each in a process group."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from support.ports import free_port
from tandem_contract import metrics as names
from tandem_contract.env import POD_NAME
from tandem_contract.flags import GatewayFlags, ServeFlags, to_argv
from tandem_contract.status import STATUS_PATH
from tandem_contract.ticket import DEFAULT_TTL_S, Ticket, new_nonce, sign

START_PATIENCE_S = 120.0
PATIENCE_S = 30.0


class Process:
    """One `tandem` command and its children; every signal goes to all of them."""

    def __init__(
        self,
        command: str,
        argv: list[str],
        log: Path,
        base_url: str,
        metrics_url: str,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.url = base_url
        self.metrics_url = metrics_url
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tandem_cli.main", command, *argv],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", POD_NAME: log.stem, **env},
            )

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self._popen.pid, number)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)
        self._popen.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM, as Kubernetes does; returns the exit status."""
        if self.alive:
            self._popen.terminate()
        try:
            return self._popen.wait(PATIENCE_S)
        finally:
            self.kill()

    def wait_exit(self, patience_s: float = PATIENCE_S) -> int:
        return self._popen.wait(patience_s)

    def kill_child(self, name: str) -> None:
        self.child(name).kill()

    def child(self, name: str) -> psutil.Process:
        """The one process below this one that shows `name` as its title."""
        [child] = self._children(name)
        return child

    def wait_child(self, name: str) -> psutil.Process:
        """As `child`, of a process that is still to start."""
        deadline = time.monotonic() + START_PATIENCE_S
        while not (found := self._children(name)):
            assert time.monotonic() < deadline, self.log()
            assert self._popen.poll() is None, self.log()
            time.sleep(0.01)
        return found[0]

    def _children(self, name: str) -> list[psutil.Process]:
        below = psutil.Process(self._popen.pid).children(recursive=True)
        return [process for process in below if name in _title(process)]

    @property
    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise AssertionError(f"ended with {self._popen.returncode}:\n{self.log()}")
            if self.is_ready:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready:\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-5000:]

    def get_json(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=5) as response:
            return json.load(response)

    def metric(self, metric: names.Metric, **labels: str) -> float:
        """As `total` has it."""
        with urllib.request.urlopen(self.metrics_url + "/metrics", timeout=5) as response:
            return total(response.read().decode(), metric, **labels)


def total(exposition: str, metric: names.Metric, **labels: str) -> float:
    """The sum of all samples with these labels; 0 when nothing was counted yet.

    Raises `AssertionError` for what the process does not export, so that `== 0` says something.
    """
    assert metric.kind != "histogram", f"{metric.name} has no single value"
    assert labels.keys() <= set(metric.labels), f"{metric.name} has no labels {labels.keys() - set(metric.labels)}"
    families = {family.name: family for family in text_string_to_metric_families(exposition)}
    family = families.get(metric.name.removesuffix("_total"))  # as the parser names counters
    assert family is not None, f"{metric.name} is not exported; there is {sorted(families)}"
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == metric.name and labels.items() <= sample.labels.items()
    )


def _title(process: psutil.Process) -> str:
    """Empty of one that has ended since it was listed."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class EnginePod(Process):
    def __init__(self, flags: ServeFlags, log: Path, env: Mapping[str, str]) -> None:
        self.flags = flags
        self.name = log.stem
        host = "127.0.0.1"
        super().__init__(
            "serve", to_argv(flags), log, f"http://{host}:{flags.port}", f"http://{host}:{flags.metrics_port}", env
        )

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.flags.handoff_port}"

    def status(self) -> dict[str, Any]:
        return self.get_json(STATUS_PATH)

    def wait_idle(self) -> None:
        """Until no page is held or quarantined: nothing leaked."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.status()
            quarantined = self.metric(names.HANDOFF_QUARANTINED)
            if not (status["running"] or status["waiting"] or status["kv_pages_used"] or quarantined):
                return
            time.sleep(0.05)
        raise AssertionError(f"pages leaked: {status}, quarantined {quarantined}\n{self.log()}")


class Gateway(Process):
    def __init__(self, flags: GatewayFlags, log: Path, env: Mapping[str, str]) -> None:
        base, metrics = f"http://127.0.0.1:{flags.port}", f"http://127.0.0.1:{flags.metrics_port}"
        super().__init__("gateway", to_argv(flags), log, base, metrics, env)
        self._pods = len(flags.decode) + len(flags.prefill)

    def wait_ready(self) -> None:
        """Until it knows all its pods as ready; by itself it is once it knows of one that decodes."""
        super().wait_ready()
        deadline = time.monotonic() + START_PATIENCE_S
        while self.metric(names.GATEWAY_PODS, state="ready") < self._pods:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


class Fleet:
    """Starts pods of one model; `close` ends whatever still runs."""

    def __init__(self, model: Path, folder: Path, env: Mapping[str, str] = MappingProxyType({})) -> None:
        """`env`: of every process, over the test's own."""
        self._env = env
        self._model = model
        self._folder = folder
        self.key_file = folder / "ticket-keys"
        self.key = secrets.token_hex(16).encode()
        self.key_file.write_bytes(self.key + b"\n")
        self._processes: list[Process] = []

    def pod(self, role: str, **options: Any) -> EnginePod:
        values: dict[str, Any] = {
            "model": str(self._model),
            "served_model_name": ("tiny",),
            "role": role,
            "host": "127.0.0.1",
            "port": free_port(),
            "metrics_port": free_port(),
            "handoff_port": free_port(),
            "kv_data_port": 0,
            "kv_cache_memory": "16MiB",
            "ticket_key_file": str(self.key_file),
            "local_prefill_max_tokens": 0,
            "cpu_threads": 1,
        }
        flags = ServeFlags(**(values | options))
        return self._started(EnginePod(flags, self._folder / f"{role}-{flags.port}.log", self._env))

    def again(self, pod: EnginePod) -> EnginePod:
        """Another process in the place of one that ended."""
        return self._started(EnginePod(pod.flags, self._folder / f"{pod.flags.role}-{pod.flags.port}.log", self._env))

    def gateway(self, decode: list[EnginePod], prefill: list[EnginePod], **options: Any) -> Gateway:
        flags = GatewayFlags(
            host="127.0.0.1",
            port=free_port(),
            metrics_port=free_port(),
            decode=tuple(pod.url for pod in decode),
            prefill=tuple(pod.url for pod in prefill),
            ticket_key_file=str(self.key_file),
            **options,
        )
        return self._started(Gateway(flags, self._folder / f"gateway-{flags.port}.log", self._env))

    def ticket(self, prefill: EnginePod, request_id: str, *, ttl_s: float = DEFAULT_TTL_S, key: bytes = b"") -> str:
        ticket = Ticket(
            request_id=request_id,
            prefill_host="127.0.0.1",
            prefill_port=prefill.flags.handoff_port,
            prefill_incarnation=prefill.status()["incarnation"],
            nonce=new_nonce(),
            expires_at=time.time() + ttl_s,
        )
        return sign(ticket, key or self.key)

    def _started(self, process: Any) -> Any:
        self._processes.append(process)
        return process

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
