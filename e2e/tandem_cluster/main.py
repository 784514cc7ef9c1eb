"""`e2e/cluster`: the command line."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem_cluster import binaries, images, lifecycle, requirements
from tandem_cluster.errors import ClusterError
from tandem_cluster.plan import ADDRESSES, Machine, Plan

# Where root's programs and Go are, on machines whose PATH does not say so.
_PROGRAMS = ("/usr/local/go/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PROGRAMS))
    os.environ["NO_PROXY"] = _no_proxy()
    try:
        return _run(Plan(options.number), options)
    except ClusterError as error:
        print(f"e2e/cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2e/cluster", description="A throwaway Kubernetes on this machine, for tests."
    )
    parser.add_argument(
        "--number",
        type=int,
        default=os.environ.get("E2E_CLUSTER") or "0",
        help="which cluster, for several on one machine (default: $E2E_CLUSTER, else 0)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start it; a cluster that is up is left alone")
    commands.add_parser("down", help="remove all of it")
    commands.add_parser("status", help="one line: what runs, or what is missing to start it; exit status 0 if it is up")
    commands.add_parser("env", help="shell commands that set KUBECONFIG, PATH (its kubectl and helm) and NO_PROXY")
    commands.add_parser("build", help="only build the programs that `up` needs")
    commands.add_parser("missing-packages", help="Debian packages that `up` needs and this machine lacks")
    load = commands.add_parser("load", help="import container images into every node")
    load.add_argument("archive", type=Path, nargs="+", help="an OCI or docker archive (tar)")
    for name, what in (("node-down", "lose a node: pull its network cable"), ("node-up", "plug the cable in again")):
        commands.add_parser(name, help=what).add_argument("node")
    restart = commands.add_parser("restart", help="kill -9 a daemon; it starts again a second later")
    restart.add_argument("program", help="kube-apiserver, etcd, kubelet, ...")
    restart.add_argument("machine", nargs="?", default="control", help="control or a node (default: control)")
    return parser


def _run(plan: Plan, options: argparse.Namespace) -> int:
    match options.command:
        case "status":
            return _status(plan)
        case "env":
            print(f"export KUBECONFIG={shlex.quote(str(plan.kubeconfig))}")
            print(f"export PATH={shlex.quote(str(binaries.folder()))}:$PATH")
            print(f"export NO_PROXY={shlex.quote(os.environ['NO_PROXY'])}")
        case "build":
            requirements.check_go()
            print(binaries.ensure())
        case "missing-packages":
            print(" ".join(requirements.missing_packages()))
        case "up":
            with _alone(plan):
                lifecycle.up(plan)
            return _status(plan)
        case "down":
            with _alone(plan):
                lifecycle.down(plan)
        case "load":
            for archive in options.archive:
                images.load(plan, archive)
        case "node-down":
            lifecycle.set_link(plan, plan.node(options.node), "down")
        case "node-up":
            lifecycle.set_link(plan, plan.node(options.node), "up")
        case "restart":
            lifecycle.restart(plan, _machine(plan, options.machine), options.program)
    return 0


def _status(plan: Plan) -> int:
    if not lifecycle.is_up(plan):
        requirements.check(go=not binaries.folder().is_dir())
        print(f"{plan.name}: down; nothing is missing to start it")
        return 1
    ready = lifecycle.ready_nodes(plan)
    nodes = ", ".join(f"{node.name} {'ready' if node.name in ready else 'NOT READY'}" for node in plan.nodes)
    print(f"{plan.name}: up, Kubernetes {binaries.kubernetes_version()}, {nodes}; KUBECONFIG={plan.kubeconfig}")
    return 0


def _no_proxy() -> str:
    """No proxy of the user's is on the way to a cluster."""
    ours = str(ADDRESSES)
    told = [entry for entry in os.environ.get("NO_PROXY", "").split(",") if entry]
    return ",".join(told if ours in told else [*told, ours])


def _machine(plan: Plan, name: str) -> Machine:
    return plan.control if name == plan.control.name else plan.node(name)


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    requirements.check_root()
    with Path(f"/run/lock/{plan.name}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
