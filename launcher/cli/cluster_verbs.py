"""What submit, status, logs, list and cancel do with `--target kubernetes`."""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table

from launcher.errors import LauncherError, UsageError
from launcher.spec import JobSpec
from launcher.targets.kubernetes import logs as pod_logs
from launcher.targets.kubernetes import watch
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.submit import cancel as cancel_job
from launcher.targets.kubernetes.submit import submit as submit_job
from launcher.targets.kubernetes.target import KubernetesTarget
from launcher.terminal.console import console
from launcher.terminal.words import cause_lines

_SECONDS_BETWEEN_LOOKS = 1.0


def submit(spec: JobSpec, wait: bool) -> None:
    """Sends the job; with `wait` stays until it has ended and exits as it did."""
    target, place = KubernetesTarget(spec), spec.kubernetes
    cluster = Cluster.connect(place.context, place.namespace)
    cluster.check(target.kind)
    new = submit_job(cluster, target.manifests())
    where = f"{target.kind.resource.kind} {spec.name} in namespace {cluster.namespace}"
    print(f"{where}: {'submitted' if new else 'was there already, the very same'}")
    for verb in ("status {} --watch", "logs {} --follow", "cancel {}"):
        print(f"  launcher {verb.format(spec.name)} --target kubernetes{_flags(place)}")
    if wait:
        _follow(cluster, spec.name, as_json=False)


def status(cluster: Cluster, name: str | None, stay: bool, as_json: bool) -> None:
    """Shows where a job stands, and exits with its own code once it has ended."""
    name = name or _newest(cluster)
    if stay:
        _follow(cluster, name, as_json)
    kind, job = watch.find(cluster, name)
    found = watch.look(cluster, kind, job)
    _show(found, as_json)
    raise typer.Exit(found.exit_code)


def logs(
    cluster: Cluster, name: str | None, worker: int | None, rank: int | None, follow: bool
) -> None:
    """Prints the log of the pod that leads, in which all ranks are, or of one worker's pod."""
    name = name or _newest(cluster)
    kind, job = watch.find(cluster, name)
    while True:
        pod = pod_logs.leading_pod(cluster, kind, name, worker)
        if pod is not None:
            break
        found = watch.look(cluster, kind, job)
        if not follow or found.ended:
            raise LauncherError(f"job {name!r} has no such pod: it is {found.state}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        kind, job = watch.find(cluster, name)
    for line in pod_logs.lines(cluster, pod, kind.container, follow):
        if rank is None or _is_of_rank(line, rank):
            print(line, flush=follow)


def show_jobs(cluster: Cluster, as_json: bool) -> None:
    """Prints every job submitted to the namespace, the newest last."""
    found = watch.jobs(cluster)
    if as_json:
        for job in found:
            _show(job, as_json=True)
        return
    if not found:
        print(f"no jobs of the launcher in namespace {cluster.namespace!r}", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("job", "kind", "state", "submitted", "pods", "cause"):
        table.add_column(column, no_wrap=column == "job")
    for job in found:
        cause = job.cause.kind if job.cause else ""
        table.add_row(job.name, job.kind, job.state, job.created, _counts(job.pods), cause)
    console().print(table)


def cancel(cluster: Cluster, name: str | None, now: bool) -> None:
    """Deletes a job and all that was made for it."""
    if name is None:
        raise UsageError("expected the name of the job; see: launcher list --target kubernetes")
    cancel_job(cluster, name, now)
    print(f"{name}: cancelled; its pods {'are killed' if now else 'save and end'}")


def _is_of_rank(line: str, rank: int) -> bool:
    """Whether the launcher in the pod has marked the line as that rank's: `[ 1] text`."""
    label, bracket, _ = line.removeprefix("[").partition("]")
    return bool(bracket) and label.split()[:1] == [str(rank)]


def _follow(cluster: Cluster, name: str, as_json: bool) -> None:
    kind, _ = watch.find(cluster, name)
    for found in watch.follow(cluster, kind, name):
        _show(found, as_json)
    raise typer.Exit(found.exit_code)


def _show(job: watch.JobStatus, as_json: bool) -> None:
    if as_json:
        cause = job.cause.as_json() if job.cause else None
        print(json.dumps({**dataclasses.asdict(job), "cause": cause}), flush=True)
        return
    print(f"{job.name}: {job.state}, pods: {_counts(job.pods)}", flush=True)
    if job.cause is not None:
        print("\n".join(f"  {line}" for line in cause_lines(job.cause.as_json(), None)), flush=True)


def _counts(pods: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {phase.lower()}" for phase, count in sorted(pods.items())) or "none"


def _newest(cluster: Cluster) -> str:
    found = watch.jobs(cluster)
    if not found:
        raise UsageError(f"no jobs of the launcher in namespace {cluster.namespace!r}")
    return found[-1].name


def _flags(place: Any) -> str:
    given = {"--namespace": place.namespace, "--context": place.context}
    return "".join(f" {flag} {value}" for flag, value in given.items() if value)
