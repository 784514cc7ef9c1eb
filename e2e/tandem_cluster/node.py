"""What runs on a node, and with which settings: containerd with the CNI bridge, kubelet, kube-proxy, and what enforces
NetworkPolicies."""

from __future__ import annotations

import json
from pathlib import Path

from tandem_cluster import control_plane, network
from tandem_cluster.plan import DNS_DOMAIN, Node, Plan
from tandem_cluster.supervisor import BIN, LIB, RUN, Daemon, copy_of

CONTAINERD_SOCKET = RUN / "containerd/containerd.sock"
CONTAINERD_CONFIG = RUN / "containerd.toml"
CNI_CONFIG = RUN / "cni/net.d/10-bridge.conflist"
CNI_PLUGINS = Path("/usr/lib/cni")
KUBELET_CONFIG = RUN / "kubelet.json"
KUBECONFIG = RUN / "kubelet"
POLICIES_KUBECONFIG = RUN / "policies"
CA = RUN / "ca.crt"

# What kubelet sets for the whole kernel when it starts: it finds it done, in copies, and leaves the host's alone.
KERNEL_SETTINGS = {
    Path("/proc/sys/vm/overcommit_memory"): "1",
    Path("/proc/sys/vm/panic_on_oom"): "0",
    Path("/proc/sys/kernel/panic"): "10",
    Path("/proc/sys/kernel/panic_on_oops"): "1",
    Path("/proc/sys/kernel/keys/root_maxkeys"): "1000000",
    Path("/proc/sys/kernel/keys/root_maxbytes"): "25000000",
}


def daemons(plan: Plan, node: Node) -> list[Daemon]:
    kubelet = (
        f"{BIN}/kubelet",
        f"--config={KUBELET_CONFIG}",
        f"--kubeconfig={KUBECONFIG}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    )
    policies = (
        f"{BIN}/policies",
        f"--kubeconfig={POLICIES_KUBECONFIG}",
        f"--hostname-override={node.name}",
        f"--nfqueue-id={network.POLICIES_QUEUE}",
    )
    return [
        Daemon("containerd", ("containerd", f"--config={CONTAINERD_CONFIG}")),
        Daemon("kubelet", kubelet, after=CONTAINERD_SOCKET),
        control_plane.proxy(plan, node.name),
        Daemon("policies", policies),
    ]


def files(plan: Plan, node: Node, sandbox_image: str) -> dict[Path, str]:
    return {
        CONTAINERD_CONFIG: containerd_config(sandbox_image),
        CNI_CONFIG: json.dumps(cni_config(node), indent=1),
        KUBELET_CONFIG: json.dumps(kubelet_config(plan, node), indent=1),
        **{copy_of(setting): value for setting, value in KERNEL_SETTINGS.items()},
    }


def containerd_config(sandbox_image: str) -> str:
    # restrict_oom_score_adj: where lowering it is not permitted, every sandbox would fail with
    # "can't get final child's PID from pipe: EOF".
    return f"""\
version = 2
root = "{LIB}/containerd"
state = "{RUN}/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{CNI_PLUGINS}"
  conf_dir = "{CNI_CONFIG.parent}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def cni_config(node: Node) -> dict[str, object]:
    """Pods' addresses are real between the nodes (static routes), so that nothing is masqueraded."""
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "subnet": str(node.pods), "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet_config(plan: Plan, node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(CA)}},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDNS": [str(plan.control.address)],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        # The disk is the host's: how full it is must neither evict pods nor delete images that no registry has.
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "oomScoreAdj": 0,
        "volumePluginDir": f"{LIB}/kubelet/volume-plugins",
        "nodeStatusUpdateFrequency": "4s",
        # So soon do pods see that a Secret was changed: after a minute by default.
        "syncFrequency": "5s",
        "nodeLeaseDurationSeconds": control_plane.NODE_GRACE_SECONDS,
    }
