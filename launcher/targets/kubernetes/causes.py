"""Causes from the states of pods and from events, in the same classes as those of local jobs."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from launcher.supervision.causes import Cause, CauseClass
from launcher.targets.kubernetes.manifests import Manifest

# How the supervisor inside a pod reports the cause in its last lines.
_REPORTED = re.compile(rf"launcher: ({'|'.join(get_args(CauseClass))}): (.+)")

# Why a container does not start: reason, and how to fix it.
_WAITING = {
    "ImagePullBackOff": "check the image's name, and --pull-secret if its registry needs one",
    "ErrImagePull": "check the image's name, and --pull-secret if its registry needs one",
    "InvalidImageName": "check the image's name",
    "ErrImageNeverPull": "the image is on no node, and kubernetes.pull_policy forbids pulling it",
    "CreateContainerConfigError": "create the Secret or ConfigMap that it names",
    "CreateContainerError": "see `kubectl describe pod`",
    "RunContainerError": "see `kubectl describe pod`",
}
_DISRUPTIONS: dict[str, CauseClass] = {
    "PreemptionByScheduler": "preempted",
    "EvictionByEvictionAPI": "preempted",
    "DeletionByTaintManager": "lost host",
    "DeletionByPodGC": "lost host",
    "TerminationByKubelet": "preempted",
}
_MEMORY_HINT = "give the pods more memory (--memory), or make the batch smaller"


def failure(pods: Sequence[Manifest]) -> Cause | None:
    """The first cause among failed pods: those that no peer explains first, then the earliest."""
    found = [(_order(pod), cause) for pod in pods if (cause := _failure_of(pod)) is not None]
    return min(found, key=lambda one: one[0])[1] if found else None


def obstacle(pods: Sequence[Manifest], events: Sequence[Manifest]) -> Cause | None:
    """What keeps pods from starting, or None if nothing is known."""
    for pod in pods:
        cause = _waiting(pod) or _unscheduled(pod)
        if cause is not None:
            return cause
    for event in reversed(events):
        if event.get("reason") == "FailedCreate":
            message = str(event.get("message", ""))
            hint = (
                "request less, or wait until other jobs have ended" if "quota" in message else None
            )
            return Cause("bad config", f"pods cannot be created: {message}", hint=hint)
        if event.get("reason") in {"FailedMount", "FailedAttachVolume"}:
            where = event.get("involvedObject", {}).get("name", "a pod")
            return Cause("bad config", f"{where} waits for a volume: {event.get('message', '')}")
    return None


def _failure_of(pod: Manifest) -> Cause | None:
    status = pod.get("status", {})
    name, host = pod["metadata"]["name"], pod.get("spec", {}).get("nodeName")
    subject = f"pod {name}" + (f" on {host}" if host else "")
    ended = _terminated(pod)
    code = ended.get("exitCode")
    if status.get("phase") != "Failed" and not code:
        return None
    if ended.get("reason") == "OOMKilled":
        words, hint = f"{subject} was killed: out of memory (OOMKilled)", _MEMORY_HINT
        return Cause("oom", words, host=host, exit_code=code, hint=hint)
    if status.get("reason") == "Evicted":
        return Cause("preempted", f"{subject} was evicted: {status.get('message', '')}", host=host)
    disruption = _condition(pod, "DisruptionTarget")
    if disruption is not None:
        kind = _DISRUPTIONS.get(str(disruption.get("reason")), "preempted")
        return Cause(kind, f"{subject}: {disruption.get('message', 'disrupted')}", host=host)
    if status.get("reason") in {"NodeLost", "NodeShutdown", "Terminated"}:
        return Cause("lost host", f"{subject} was lost with its node", host=host)
    if status.get("reason") == "DeadlineExceeded":
        return Cause("error", f"{subject} took longer than its time limit", host=host)
    lines = tuple(str(ended.get("message", "")).splitlines())
    reported = next((found for line in lines if (found := _REPORTED.search(line))), None)
    if reported is not None:
        kind = reported[1]  # type: ignore[assignment]
        return Cause(kind, reported[2], host=host, exit_code=code, tail=lines[-8:])
    kind, words = _by_code(code)
    return Cause(kind, f"{subject} {words}", host=host, exit_code=code, tail=lines[-8:])


def _by_code(code: int | None) -> tuple[CauseClass, str]:
    if code is None:
        return "lost host", "failed without an exit code"
    if code == 143:
        return "preempted", "received a SIGTERM from outside the job"
    if code > 128:
        return "killed", f"was killed by signal {code - 128}"
    if code == 2:
        return "bad config", "refused its arguments or configuration (exit code 2)"
    return "error", f"failed with exit code {code}"


def _waiting(pod: Manifest) -> Cause | None:
    for status in pod.get("status", {}).get("containerStatuses", []):
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _WAITING:
            words = f"pod {pod['metadata']['name']}: {waiting['reason']}: " + str(
                waiting.get("message") or status.get("image", "")
            )
            return Cause("bad config", words, hint=_WAITING[waiting["reason"]])
    return None


def _unscheduled(pod: Manifest) -> Cause | None:
    condition = _condition(pod, "PodScheduled", status="False")
    if condition is None or condition.get("reason") != "Unschedulable":
        return None
    words = f"pod {pod['metadata']['name']} is Unschedulable: {condition.get('message', '')}"
    hint = "no node has enough free resources; request less, or other nodes (--node-selector)"
    return Cause("bad config", words, hint=hint)


def _condition(pod: Manifest, kind: str, status: str = "True") -> dict[str, Any] | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _terminated(pod: Manifest) -> dict[str, Any]:
    for status in pod.get("status", {}).get("containerStatuses", []):
        for state in ("state", "lastState"):
            if ended := status.get(state, {}).get("terminated"):
                return dict(ended)
    return {}


def _order(pod: Manifest) -> tuple[int, str]:
    """Actions of the platform come before reports of the leader, these before exit codes."""
    ended, status = _terminated(pod), pod.get("status", {})
    by_platform = (
        ended.get("reason") == "OOMKilled"
        or status.get("reason")
        or _condition(pod, "DisruptionTarget")
    )
    reported = _REPORTED.search(str(ended.get("message", "")))
    rank = 0 if by_platform else 1 if reported else 2
    return rank, str(ended.get("finishedAt", "~"))
