"""The state of a job on a cluster, and its changes until the job has ended.

A watch only triggers a read: the state is read anew each time, so a watch that is dropped, expires
(410) or merges several changes loses no information.
"""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from launcher.errors import LauncherError, UnknownRunError, UsageError
from launcher.supervision.causes import Cause
from launcher.targets.base import JobStatus
from launcher.targets.kubernetes import causes
from launcher.targets.kubernetes.api_errors import GoneError
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import EVENT, KINDS, POD, JobKind
from launcher.targets.kubernetes.manifests import INSTANCE, MANAGED_BY, OURS, Manifest
from launcher.terminal.words import cause_lines

State = Literal["queued", "pending", "running", "succeeded", "failed"]

_SUCCEEDED = {"Complete", "Completed", "Succeeded"}
_WATCH_SECONDS = 10
_SETTLE_SECONDS = 0.3  # changes of the same moment are read together
_UNREACHABLE_SECONDS = 120.0


@dataclass(frozen=True)
class ClusterJob(JobStatus):
    """The status of a job; `pods` counts its pods by phase, `cause` says why it failed or waits."""

    name: str
    kind: str
    state: State
    pods: dict[str, int]
    cause: Cause | None
    created: str

    @property
    def ended(self) -> bool:
        return self.state in {"succeeded", "failed"}

    @property
    def exit_code(self) -> int:
        if self.state != "failed":
            return 0
        return 2 if self.cause is not None and self.cause.kind == "bad config" else 1

    def summary(self) -> str:
        return f"{self.name}: {self.state}, pods: {self._counts()}"

    def renderable(self) -> RenderableType:
        lines = [] if self.cause is None else cause_lines(self.cause.as_json(), None)
        return Text("\n".join([self.summary(), *(f"  {line}" for line in lines)]))

    def as_json(self) -> dict[str, Any]:
        cause = self.cause.as_json() if self.cause else None
        return {**dataclasses.asdict(self), "cause": cause}

    def row(self) -> Mapping[str, str]:
        return {
            "job": self.name,
            "kind": self.kind,
            "state": self.state,
            "submitted": self.created,
            "pods": self._counts(),
            "cause": self.cause.kind if self.cause else "",
        }

    def _counts(self) -> str:
        counts = (f"{count} {phase.lower()}" for phase, count in sorted(self.pods.items()))
        return ", ".join(counts) or "none"


def find(cluster: Cluster, name: str) -> tuple[JobKind, Manifest]:
    """The job of this name, of any kind. Raises UnknownRunError."""
    for kind in KINDS.values():
        for job in _ours(cluster, kind, f"{INSTANCE}={name}"):
            return kind, job
    raise UnknownRunError(
        f"no job {name!r} in namespace {cluster.namespace!r} at {cluster.host}; "
        "see: launcher list --target kubernetes"
    )


def jobs(cluster: Cluster) -> list[ClusterJob]:
    """Every job that was submitted here, the oldest first."""
    found = [
        read_status(cluster, kind, job)
        for kind in KINDS.values()
        for job in _ours(cluster, kind, f"{MANAGED_BY}={OURS}")
    ]
    return sorted(found, key=lambda job: job.created)


def read_status(cluster: Cluster, kind: JobKind, job: Manifest) -> ClusterJob:
    """Reads the pods of the job, and the events if no pod runs."""
    name = job["metadata"]["name"]
    pods, _ = cluster.list(POD, labels=f"{kind.pods}={name}")
    phases = Counter(str(pod.get("status", {}).get("phase", "Pending")) for pod in pods)
    conditions = {
        condition["type"]: condition
        for condition in job.get("status", {}).get("conditions", [])
        if condition.get("status") == "True"
    }
    state: State = "running" if phases["Running"] else "pending"
    cause = None
    if _SUCCEEDED & conditions.keys():
        state = "succeeded"
    elif "Failed" in conditions:
        state = "failed"
        cause = causes.failure(pods) or _cause_from_job(conditions["Failed"])
    elif "Suspended" in conditions or job.get("spec", {}).get("suspend"):
        state = "queued"
    else:
        cause = causes.failure(pods)
        if not phases["Running"]:
            cause = causes.obstacle(pods, _warnings(cluster, name)) or cause
    created = str(job["metadata"].get("creationTimestamp", ""))
    return ClusterJob(name, job["kind"], state, dict(phases), cause, created)


def follow(cluster: Cluster, kind: JobKind, name: str) -> Iterator[ClusterJob]:
    """Each state of the job that differs from the one before, until it has ended.

    Tolerates a server that does not answer for two minutes. Raises LauncherError after that, or
    when the job is deleted meanwhile.
    """
    last: ClusterJob | None = None
    last_answer = time.monotonic()
    for number in itertools.count():
        try:
            _, version = cluster.list(POD, labels=f"{kind.pods}={name}", limit=1)
            job = cluster.get(kind.resource, name)
            if job is None:
                raise UnknownRunError(f"job {name!r} was deleted")
            status = read_status(cluster, kind, job)
            last_answer = time.monotonic()
            if status != last:
                yield (last := status)
            if status.ended:
                return
            _await_change(cluster, kind, job, status, version)
        except UsageError:
            raise
        except GoneError:
            continue  # the version is too old to watch from: read everything again
        except LauncherError:
            if time.monotonic() - last_answer > _UNREACHABLE_SECONDS:
                raise
            time.sleep(min(5.0, 0.2 * 2.0 ** min(number, 8)))


def _await_change(
    cluster: Cluster, kind: JobKind, job: Manifest, status: ClusterJob, version: str
) -> None:
    name = job["metadata"]["name"]
    if status.pods and set(status.pods) <= {"Succeeded", "Failed"}:
        version = str(job["metadata"]["resourceVersion"])
        fields = f"metadata.name={name}"  # all pods have ended: the status of the job changes next
        changes = cluster.changes(kind.resource, version, _WATCH_SECONDS, fields=fields)
    else:
        labels = f"{kind.pods}={name}"
        changes = cluster.changes(POD, version, _WATCH_SECONDS, labels=labels)
    for _ in changes:
        time.sleep(_SETTLE_SECONDS)
        return


def _ours(cluster: Cluster, kind: JobKind, labels: str) -> list[Manifest]:
    try:
        found, _ = cluster.list(kind.resource, labels=f"{labels},{MANAGED_BY}={OURS}")
    except UsageError:
        if kind.install:
            return []  # this cluster does not have the kind, or does not permit us to list it
        raise
    return [{"kind": kind.resource.kind, **job} for job in found]


def _warnings(cluster: Cluster, name: str) -> list[Manifest]:
    events, _ = cluster.list(EVENT, field_selector="type=Warning")
    return [
        event
        for event in events
        if str(event.get("involvedObject", {}).get("name", "")).startswith(name)
    ]


def _cause_from_job(condition: Manifest) -> Cause:
    reason, message = condition.get("reason", ""), condition.get("message", "")
    if reason == "DeadlineExceeded":
        return Cause("error", "the job took longer than its time limit")
    return Cause("error", f"the job failed: {reason}: {message}")
