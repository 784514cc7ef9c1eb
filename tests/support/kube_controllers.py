"""What controllers, kubelets and the garbage collector do in the end, in the in-process cluster."""

from __future__ import annotations

from support.fake_cluster import FakeCluster
from support.kube_objects import Object


async def run_pods(cluster: FakeCluster, *, broken_image: str = "broken") -> None:
    """What controllers and kubelets do in the end: every set has its pods, ready unless of a broken image."""
    for workload in [*cluster.all("StatefulSet"), *cluster.all("Deployment")]:
        meta, spec = workload["metadata"], workload["spec"]
        ready = 0
        for ordinal in range(spec.get("replicas", 1)):
            if f"{meta['name']}-{ordinal}" in cluster.stuck:
                continue
            works = broken_image not in spec["template"]["spec"]["containers"][0]["image"]
            ready += works
            await cluster.put(_pod(workload, f"{meta['name']}-{ordinal}", works))
        pods = [p for p in cluster.all("Pod") if p["metadata"]["ownerReferences"][0]["uid"] == meta["uid"]]
        for pod in pods:
            name = pod["metadata"]["name"]
            if name not in cluster.stuck and int(name.rpartition("-")[2]) >= spec.get("replicas", 1):
                await cluster.delete("Pod", pod["metadata"]["name"], meta["namespace"])
        status = {
            "observedGeneration": meta["generation"],
            "replicas": spec.get("replicas", 1),
            "readyReplicas": ready,
            "updatedReplicas": spec.get("replicas", 1),
        }
        if workload.get("status") != status:
            await cluster.put({**workload, "status": status})


async def collect_garbage(cluster: FakeCluster) -> int:
    """Removes what has only owners that are not there; how many it found."""
    alive = {thing["metadata"]["uid"] for thing in cluster.objects.values()}
    owners = {
        key: {owner["uid"] for owner in thing["metadata"].get("ownerReferences", [])}
        for key, thing in cluster.objects.items()
    }
    left = [key for key, uids in owners.items() if uids and not uids & alive]
    for key in left:
        await cluster.remove(key)
    return len(left)


def _pod(workload: Object, name: str, works: bool) -> Object:
    meta = workload["metadata"]
    state = {"started": works, "ready": works, "name": "engine"}
    if not works:
        state |= {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "image": "broken"}
    fetched = {"name": "fetch", "state": {"terminated": {"exitCode": 0}}}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": workload["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [
                {"kind": workload["kind"], "name": meta["name"], "uid": meta["uid"], "controller": True}
            ],
        },
        "status": {
            "phase": "Running" if works else "Pending",
            "conditions": [{"type": "Ready", "status": str(works)}],
            "containerStatuses": [state],
            "initContainerStatuses": [fetched] if workload["kind"] == "StatefulSet" else [],
        },
    }
