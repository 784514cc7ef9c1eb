"""What runs on the control plane's machine, and with which settings.

Defaults that make a lost node noticed after minutes are shortened, so that tests can wait for it.
"""

from __future__ import annotations

from tandem_cluster.plan import DNS_DOMAIN, Plan
from tandem_cluster.supervisor import BIN, LIB, RUN, Daemon

PKI = RUN / "pki"
ETCD = "http://127.0.0.1:2379"
COREFILE = RUN / "Corefile"
PROXY_KUBECONFIG = RUN / "proxy"

# A node counts as lost when it was silent for this long; its pods are evicted after the toleration on top.
NODE_GRACE_SECONDS = 20
LOST_NODE_TOLERATION_SECONDS = 10


def daemons(plan: Plan) -> list[Daemon]:
    return [
        # Nothing here outlives a power cut, so that nothing needs to wait for the disk.
        Daemon("etcd", (f"{BIN}/etcd", f"--data-dir={LIB}/etcd", "--unsafe-no-fsync", "--log-level=warn")),
        Daemon("kube-apiserver", (f"{BIN}/kube-apiserver", *_api_server(plan))),
        Daemon("kube-controller-manager", (f"{BIN}/kube-controller-manager", *_controller_manager(plan))),
        Daemon(
            "kube-scheduler",
            (
                f"{BIN}/kube-scheduler",
                f"--kubeconfig={RUN}/scheduler",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
            ),
        ),
        # The API server and the host reach Services through this machine.
        proxy(plan, "control"),
        Daemon("coredns", (f"{BIN}/coredns", f"-conf={COREFILE}")),
    ]


def proxy(plan: Plan, machine: str) -> Daemon:
    arguments = (
        f"--kubeconfig={PROXY_KUBECONFIG}",
        f"--hostname-override={machine}",
        f"--cluster-cidr={plan.pods}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        "--oom-score-adj=0",
    )
    return Daemon("kube-proxy", (f"{BIN}/kube-proxy", *arguments))


def corefile() -> str:
    """Only the cluster's names exist: whatever else a pod asks for is answered with NXDOMAIN at once."""
    return f"""\
.:53 {{
  errors
  ready
  kubernetes {DNS_DOMAIN} in-addr.arpa {{
    kubeconfig {RUN}/dns
    pods insecure
    ttl 1
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""


def _api_server(plan: Plan) -> list[str]:
    return [
        f"--advertise-address={plan.control.address}",
        f"--etcd-servers={ETCD}",
        f"--service-cluster-ip-range={plan.services}",
        f"--tls-cert-file={PKI}/api-server.crt",
        f"--tls-private-key-file={PKI}/api-server.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/kubelet-client.crt",
        f"--kubelet-client-key={PKI}/kubelet-client.key",
        # Node names are in no DNS: logs and exec go to the address.
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--service-account-key-file={PKI}/service-accounts.pub",
        f"--service-account-signing-key-file={PKI}/service-accounts.key",
        f"--requestheader-client-ca-file={PKI}/ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={PKI}/front-proxy.crt",
        f"--proxy-client-key-file={PKI}/front-proxy.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--default-not-ready-toleration-seconds={LOST_NODE_TOLERATION_SECONDS}",
        f"--default-unreachable-toleration-seconds={LOST_NODE_TOLERATION_SECONDS}",
    ]


def _controller_manager(plan: Plan) -> list[str]:
    return [
        f"--kubeconfig={RUN}/controller-manager",
        f"--root-ca-file={PKI}/ca.crt",
        f"--service-account-private-key-file={PKI}/service-accounts.key",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--node-monitor-period=2s",
        f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--horizontal-pod-autoscaler-downscale-stabilization=15s",
        f"--cluster-cidr={plan.pods}",
    ]
