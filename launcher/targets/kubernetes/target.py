"""The target `--target kubernetes`: renders jobs, submits them to a cluster, follows them."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import yaml

from launcher.errors import LauncherError, UsageError
from launcher.spec import JobSpec
from launcher.targets.base import JobStatus, LogQuery, Target, is_of_rank
from launcher.targets.kubernetes import manifests
from launcher.targets.kubernetes.kinds import KINDS, JobKind
from launcher.targets.kubernetes.manifests import Manifest

if TYPE_CHECKING:
    from launcher.targets.kubernetes.cluster import Cluster

_POLL_SECONDS = 1.0


class KubernetesTarget(Target):
    """One namespace of a cluster. A job is checked before anything is submitted."""

    name = "kubernetes"

    def flags(self) -> str:
        return super().flags() + self.where.flags("namespace", "context")

    def check(self, spec: JobSpec) -> None:
        kind = _kind(spec)
        self._connect().check(kind)

    def render(self, spec: JobSpec) -> str:
        return yaml.safe_dump_all(objects(spec), sort_keys=False, width=100).rstrip("\n")

    def submit(self, spec: JobSpec) -> tuple[str, str]:
        from launcher.targets.kubernetes.submit import submit

        wanted, kind = objects(spec), _kind(spec)
        cluster = self._connect()
        cluster.check(kind)
        new = submit(cluster, wanted)
        job = f"{kind.resource.kind} {spec.name} in namespace {cluster.namespace}"
        return spec.name, f"{job}: {'submitted' if new else 'the same job exists already'}"

    def describe(self, name: str | None) -> JobStatus:
        from launcher.targets.kubernetes import watch

        cluster = self._connect()
        return watch.read_status(cluster, *watch.find(cluster, name or self._newest(cluster)))

    def follow(self, name: str | None) -> Iterator[JobStatus]:
        from launcher.targets.kubernetes import watch

        cluster = self._connect()
        name = name or self._newest(cluster)
        kind, _ = watch.find(cluster, name)
        return watch.follow(cluster, kind, name)

    def logs(self, name: str | None, query: LogQuery) -> Iterator[str]:
        """The log of the leader's pod, which has the output of all ranks, or of a worker's pod."""
        from launcher.targets.kubernetes import logs, watch

        query.refuse("attempt", "a pod has one log for all attempts; expected none")
        cluster = self._connect()
        name = name or self._newest(cluster)
        kind, job = watch.find(cluster, name)
        while (pod := logs.leading_pod(cluster, kind, name, query.worker)) is None:
            found = watch.read_status(cluster, kind, job)
            if not query.follow or found.ended:
                raise LauncherError(f"job {name!r} has no such pod: it is {found.state}")
            time.sleep(_POLL_SECONDS)
            kind, job = watch.find(cluster, name)
        for line in logs.lines(cluster, pod, kind.container, query.follow):
            if query.rank is None or is_of_rank(line, query.rank):
                yield line

    def cancel(self, name: str | None, now: bool) -> str:
        """Deletes the job and all objects created for it."""
        from launcher.targets.kubernetes.submit import cancel

        if name is None:
            raise UsageError(f"expected the name of the job; see: launcher list{self.flags()}")
        cancel(self._connect(), name, now)
        return f"{name}: cancelled; its pods {'are killed' if now else 'save and end'}"

    def list(self) -> list[JobStatus]:
        from launcher.targets.kubernetes import watch

        return [*watch.jobs(self._connect())]

    def no_jobs_message(self) -> str:
        return f"no jobs of the launcher in namespace {self._connect().namespace!r}"

    def _connect(self) -> "Cluster":
        from launcher.targets.kubernetes.cluster import Cluster

        return Cluster.connect(self.where.context, self.where.namespace)

    def _newest(self, cluster: "Cluster") -> str:
        from launcher.targets.kubernetes import watch

        found = watch.jobs(cluster)
        if not found:
            raise UsageError(self.no_jobs_message())
        return found[-1].name


def objects(spec: JobSpec) -> list[Manifest]:
    """The objects to create, in this order; the job itself comes last. Raises SpecError."""
    return _kind(spec).manifests(spec)


def _kind(spec: JobSpec) -> JobKind:
    manifests.check(spec)
    return KINDS[spec.kubernetes.kind]
