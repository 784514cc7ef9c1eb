"""Starts the machines' first processes, and finds whatever a cluster left running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tandem_cluster.errors import ClusterError
from tandem_cluster.plan import Machine, Plan

# In the environment of everything that runs for a cluster but is not in a container: survives every way to detach.
_MARK = "TANDEM_E2E_RUNS_FOR"
_DEADLINE_SECONDS = 20.0


def start(plan: Plan, machine: Machine, script: Path) -> None:
    """Runs `script`, detached, as PID 1 of new PID and mount namespaces in the machine's network namespace."""
    with script.with_suffix(".log").open("w") as log:
        subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{machine.netns}"),
                # Slave: what the host unmounts is not held here, and what is mounted here never shows on the host.
                *("unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("sh", str(script)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(plan, machine),
            start_new_session=True,
            cwd="/",
        )


def running(plan: Plan, machine: Machine | None = None, program: str | None = None) -> list[int]:
    """The processes of a cluster, of one of its machines, of one program there; containers' are not among them."""
    mark = f"{_MARK}={_label(plan, machine) if machine else plan.name + '/'}".encode()
    return [
        pid
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
        if _is_marked(pid, mark, exact=machine is not None) and (program is None or _program(pid) == program)
    ]


def kill_all(plan: Plan) -> None:
    """Kills until nothing is left. A machine's first process takes the machine's containers with it."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while pids := running(plan):
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:
            raise ClusterError(f"{plan.name}: processes {pids} do not die; look at their state with ps")
        time.sleep(0.05)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _environment(plan: Plan, machine: Machine) -> dict[str, str]:
    # Not the caller's: a proxy setting or a KUBECONFIG there must not reach the daemons. What marks a CI run does.
    kept = {name: value for name, value in os.environ.items() if name == "TANDEM_CI_RUN"}
    return {
        **kept,
        _MARK: _label(plan, machine),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        # Clients notice within seconds that their connection broke when a node's cable was pulled and plugged.
        "HTTP2_READ_IDLE_TIMEOUT_SECONDS": "5",
        "HTTP2_PING_TIMEOUT_SECONDS": "5",
    }


def _label(plan: Plan, machine: Machine) -> str:
    return f"{plan.name}/{machine.name}"


def _is_marked(pid: int, mark: bytes, exact: bool) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or a kernel thread
        return False
    return any(variable == mark if exact else variable.startswith(mark) for variable in variables)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""
