"""Brings a cluster up and takes it down, whatever state it is in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tandem_cluster import (
    binaries,
    cgroups,
    control_plane,
    images,
    network,
    node,
    pki,
    processes,
    requirements,
    supervisor,
)
from tandem_cluster.errors import ClusterError
from tandem_cluster.kubeconfig import kubeconfig
from tandem_cluster.kubectl import Kubectl
from tandem_cluster.manifests import DNS_RIGHTS, POLICIES_RIGHTS
from tandem_cluster.plan import Machine, Node, Plan
from tandem_cluster.waiting import succeeds, wait_for

_UP_SECONDS = 120.0


def up(plan: Plan) -> None:
    """Brings it up if it is not; what is left of an earlier one is removed first."""
    if is_up(plan):
        return
    requirements.check(go=not binaries.folder().is_dir())
    programs = binaries.ensure()
    down(plan)
    try:
        _start(plan, programs)
    except BaseException:
        print(f"{plan.name} did not come up; its logs stay in {plan.folder} until `down`", file=sys.stderr)
        processes.kill_all(plan)
        raise


def down(plan: Plan) -> None:
    """Leaves nothing of the cluster behind, and is content when there is nothing."""
    processes.kill_all(plan)
    for command in network.down(plan):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    wait_for("its cgroups to be empty", lambda: _removed_cgroups(plan), 60)
    if plan.folder.exists():
        _remove(plan.folder)


def is_up(plan: Plan) -> bool:
    """Whether it came up as a whole and its API server answers; a node may be lost since."""
    return os.access(plan.kubeconfig, os.R_OK) and bool(_nodes(_kubectl(plan.kubeconfig)))


def ready_nodes(plan: Plan) -> set[str]:
    return {name for name, ready in _nodes(_kubectl(plan.kubeconfig)).items() if ready}


def set_link(plan: Plan, target: Node, state: str) -> None:
    _run(network.set_link(plan, target, state))


def restart(plan: Plan, machine: Machine, program: str) -> None:
    """Kills a daemon with SIGKILL; it is started again a second later."""
    victims = processes.running(plan, machine, program)
    if not victims:
        raise ClusterError(f"no {program} runs on {machine.name} of {plan.name}")
    for pid in victims:
        processes.kill(pid)


def _start(plan: Plan, programs: Path) -> None:
    certificates = plan.folder / "pki"
    plan.folder.mkdir(mode=0o700)
    pki.write(certificates, pki.certificates(plan))
    for command in network.up(plan):
        _run(command)
    cgroups.create([machine.cgroup for machine in plan.nodes])
    _start_control_plane(plan, programs, certificates)
    for machine in plan.nodes:
        _start_node(plan, machine, programs, certificates)
    _load_box(plan, programs)

    admin = plan.folder / "admin"
    admin.write_text(kubeconfig(plan, certificates, "admin"))
    admin.chmod(0o600)
    kubectl = _kubectl(admin)
    wait_for("the API server", lambda: succeeds(lambda: kubectl("get", "--raw=/readyz")), _UP_SECONDS)
    kubectl.apply(*DNS_RIGHTS, *POLICIES_RIGHTS)
    wait_for("all nodes to be ready", lambda: sum(_nodes(kubectl).values()) == len(plan.nodes), _UP_SECONDS)
    wait_for("cluster DNS", lambda: _answers(f"http://{plan.control.address}:8181/ready"), _UP_SECONDS)
    wait_for("service accounts", lambda: succeeds(lambda: kubectl("get", "serviceaccount", "default")), _UP_SECONDS)
    # Its presence says that all of this is done.
    admin.rename(plan.kubeconfig)


def _start_control_plane(plan: Plan, programs: Path, certificates: Path) -> None:
    users = ("controller-manager", "scheduler", "proxy", "dns")
    files = {supervisor.RUN / user: kubeconfig(plan, certificates, user) for user in users}
    files |= {control_plane.PKI / file.name: file.read_text() for file in certificates.iterdir()}
    files |= {control_plane.COREFILE: control_plane.corefile()}
    _start_machine(plan, plan.control, files, supervisor.script(plan.control, programs, control_plane.daemons(plan)))


def _start_node(plan: Plan, machine: Node, programs: Path, certificates: Path) -> None:
    files = node.files(plan, machine, images.BOX)
    files |= {
        node.CA: (certificates / "ca.crt").read_text(),
        node.KUBECONFIG: kubeconfig(plan, certificates, machine.name),
        control_plane.PROXY_KUBECONFIG: kubeconfig(plan, certificates, "proxy"),
        node.POLICIES_KUBECONFIG: kubeconfig(plan, certificates, "policies"),
    }
    daemons = node.daemons(plan, machine)
    _start_machine(plan, machine, files, supervisor.script(machine, programs, daemons, node.KERNEL_SETTINGS))


def _start_machine(plan: Plan, machine: Machine, files: Mapping[Path, str], script: str) -> None:
    supervisor.write_files(machine, files)
    first_process = machine.folder / "init.sh"
    first_process.write_text(script)
    processes.start(plan, machine, first_process)


def _load_box(plan: Plan, programs: Path) -> None:
    sockets = [supervisor.on_host(machine, node.CONTAINERD_SOCKET) for machine in plan.nodes]
    wait_for("containerd", lambda: all(socket.exists() for socket in sockets), _UP_SECONDS)
    archive = plan.folder / "box.tar"
    images.write_box_archive(archive, programs / "box")
    images.load(plan, archive)


def _nodes(kubectl: Kubectl) -> dict[str, bool]:
    """Each node that the API server knows, and whether it is ready; none when there is no API server."""
    try:
        nodes = kubectl.get("nodes", "--request-timeout=5s")["items"]
    except ClusterError:
        return {}
    return {node["metadata"]["name"]: _is_ready(node["status"].get("conditions", [])) for node in nodes}


def _is_ready(conditions: list[dict[str, str]]) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _kubectl(kubeconfig: Path) -> Kubectl:
    return Kubectl(kubeconfig, program=str(binaries.folder() / "kubectl"))


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2):
        return True
    return False


def _remove(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if inside := [mount for mount in mounts if Path(mount).is_relative_to(folder)]:
        # Not ours, whose mounts the host never sees: whose data would be deleted?
        raise ClusterError(f"{', '.join(inside)} is mounted; umount it, then `down` again")
    shutil.rmtree(folder)


def _removed_cgroups(plan: Plan) -> bool:
    # The kernel empties a cgroup a moment after its last process was killed.
    with suppress(OSError):
        cgroups.remove(plan.name)
        return True
    return False


def _run(command: network.Command) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
