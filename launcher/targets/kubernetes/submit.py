"""Creates the objects of a job on a cluster, all or none, and deletes them again."""

import hashlib
import json
from collections.abc import Sequence

from launcher.errors import LauncherError, UsageError
from launcher.targets.kubernetes.api_errors import ConflictError, GoneError
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import BUDGET, RESOURCES, RUNTIME, SERVICE, JobKind
from launcher.targets.kubernetes.manifests import INSTANCE, MANAGED_BY, OURS, Manifest
from launcher.targets.kubernetes.watch import find

DIGEST = "launcher/digest"


def submit(cluster: Cluster, manifests: Sequence[Manifest]) -> bool:
    """Creates the objects, the job last; False if the same job exists already.

    May be called twice. If one object is refused, those created before it are deleted.
    Raises UsageError when another job has the name.
    """
    made: list[Manifest] = []
    digest = hashlib.sha256(json.dumps(list(manifests), sort_keys=True).encode()).hexdigest()[:16]
    try:
        for manifest in manifests:
            created = _create(cluster, manifest, digest)
            if created is not None:
                made.append(manifest)
    except BaseException:
        for manifest in reversed(made):
            cluster.delete(RESOURCES[manifest["kind"]], manifest["metadata"]["name"])
        raise
    _give_to_job(cluster, manifests)
    return manifests[-1] in made


def cancel(cluster: Cluster, name: str, now: bool = False) -> JobKind:
    """Deletes the job and all objects created for it; its pods save first, unless `now`.

    Raises UnknownRunError if there is no such job.
    """
    kind, _ = find(cluster, name)
    cluster.delete(kind.resource, name)
    if now:
        cluster.kill_pods(f"{kind.pods}={name}")
    for resource in (SERVICE, BUDGET, RUNTIME):
        try:
            left, _ = cluster.list(resource, labels=f"{INSTANCE}={name},{MANAGED_BY}={OURS}")
        except UsageError:
            if resource is not RUNTIME:
                raise
            continue  # this cluster does not have the kind
        for one in left:
            cluster.delete(resource, one["metadata"]["name"])
    return kind


def _create(cluster: Cluster, manifest: Manifest, digest: str) -> Manifest | None:
    """The object created, or None if the same one exists already."""
    resource, name = RESOURCES[manifest["kind"]], manifest["metadata"]["name"]
    noted = {**manifest["metadata"], "annotations": {DIGEST: digest}}
    try:
        return cluster.create(resource, {**manifest, "metadata": noted})
    except ConflictError:
        there = cluster.get(resource, name) or {"metadata": {}}
        if there["metadata"].get("annotations", {}).get(DIGEST) == digest:
            return None
        ours = there["metadata"].get("labels", {}).get(MANAGED_BY) == OURS
        fix = f"launcher cancel {name} --target kubernetes, or " if ours else ""
        raise UsageError(
            f"name: another {resource.kind} {name!r} exists in namespace {cluster.namespace!r}; "
            f"{fix}choose another --name"
        ) from None


def _give_to_job(cluster: Cluster, manifests: Sequence[Manifest]) -> None:
    """Makes the job the owner of the other objects, so that they are deleted with it."""
    *others, job = manifests
    there = cluster.get(RESOURCES[job["kind"]], job["metadata"]["name"])
    if there is None:
        raise LauncherError(f"job {job['metadata']['name']!r} was deleted while being submitted")
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": there["metadata"]["name"],
        "uid": there["metadata"]["uid"],
    }
    for other in others:
        change = {"metadata": {"ownerReferences": [owner]}}
        try:
            cluster.patch(RESOURCES[other["kind"]], other["metadata"]["name"], change)
        except GoneError:
            continue  # the job is being cancelled already
