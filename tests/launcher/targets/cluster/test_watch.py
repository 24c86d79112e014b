"""The status of a job on a cluster while it runs, and the cause if it fails or waits."""

import threading

import pytest

from launcher.errors import UnknownRunError
from launcher.spec import JobSpec
from launcher.targets.kubernetes import watch
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import KINDS
from launcher.targets.kubernetes.submit import cancel, submit
from tests.launcher.targets.cluster.api_server import ApiServer, Fault
from tests.launcher.targets.cluster.conftest import Actor, manifests
from tests.waiting import until

JOB = KINDS["job"]


def state(cluster: Cluster, name: str = "plain") -> watch.ClusterJob:
    return watch.read_status(cluster, *watch.find(cluster, name))


def test_a_job_goes_from_pending_to_running_to_succeeded(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    assert state(cluster).state == "pending"
    actor.make_pods("plain", 2)
    seen: list[watch.ClusterJob] = []
    thread = threading.Thread(target=lambda: seen.extend(watch.follow(cluster, JOB, "plain")))
    thread.start()
    for name in ("plain-0", "plain-1"):
        actor.set_pod(name, phase="Running")
    until(lambda: any(one.pods == {"Running": 2} for one in seen))
    for name in ("plain-0", "plain-1"):
        actor.end_pod(name, 0)
    actor.set_job("plain", "Complete")
    thread.join(30)
    assert not thread.is_alive()
    assert [one.state for one in seen][-1] == "succeeded"
    assert "running" in [one.state for one in seen]
    assert seen[-1].exit_code == 0


def test_following_survives_dropped_and_expired_watches(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    api_server.watch_events = 0
    seen: list[watch.ClusterJob] = []
    thread = threading.Thread(target=lambda: seen.extend(watch.follow(cluster, JOB, "plain")))
    thread.start()
    actor.set_pod("plain-0", phase="Running")
    until(lambda: any(one.pods.get("Running") == 1 for one in seen))
    gone = len([1 for _, path in api_server.requests if "watch" in path])
    api_server.compact()
    api_server.store.oldest += 1000  # every version of a list is too old to watch from
    until(lambda: len([1 for _, path in api_server.requests if "watch" in path]) > gone + 3)
    api_server.store.oldest = 0
    api_server.faults += [Fault(410, "GET", "watch=True"), Fault(500, "GET"), Fault(500, "GET")]
    actor.end_pod("plain-0", 0)
    actor.set_job("plain", "Complete")
    thread.join(30)
    assert not thread.is_alive()
    assert seen[-1].state == "succeeded"


def test_following_ends_when_the_job_is_deleted(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    found = watch.follow(cluster, JOB, "plain")
    assert next(found).state == "pending"
    cancel(cluster, "plain", now=True)
    with pytest.raises(UnknownRunError, match="was deleted"):
        list(found)


def test_the_first_cause_of_a_failure_is_named(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    told = "launcher: hang: rank 1 on worker-1@plain-1 has finished no step for 300 s\n"
    actor.end_pod("plain-0", 1, message=f"[0] training\n{told}launcher: failed after 9 s\n")
    actor.set_job("plain", "Failed", "PodFailurePolicy", "container trainer failed")
    found = state(cluster)
    assert (found.state, found.exit_code) == ("failed", 1)
    assert found.cause is not None
    assert found.cause.kind == "hang"
    assert found.cause.summary == "rank 1 on worker-1@plain-1 has finished no step for 300 s"
    # What the platform did to a pod explains what the leader could only see from afar.
    actor.end_pod("plain-1", 137, reason="OOMKilled")
    cause = state(cluster).cause
    assert cause is not None
    assert (cause.kind, cause.exit_code) == ("oom", 137)
    assert "pod plain-1" in cause.summary


@pytest.mark.parametrize(
    ("code", "kind"), [(1, "error"), (2, "bad config"), (137, "killed"), (143, "preempted")]
)
def test_an_exit_code_alone_determines_a_class(
    cluster: Cluster, spec: JobSpec, actor: Actor, code: int, kind: str
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 1)
    actor.end_pod("plain-0", code)
    actor.set_job("plain", "Failed")
    found = state(cluster)
    assert found.cause is not None
    assert found.cause.kind == kind
    assert found.exit_code == (2 if kind == "bad config" else 1)


def test_evicted_and_lost_pods_have_different_classes(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    actor.set_pod("plain-1", phase="Failed", reason="Evicted", message="node was low on memory")
    cause = state(cluster).cause
    assert cause is not None
    assert (cause.kind, "node was low on memory" in cause.summary) == ("preempted", True)
    lost = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    actor.set_pod("plain-1", reason="", conditions=[{**lost, "message": "node gone"}])
    cause = state(cluster).cause
    assert cause is not None
    assert cause.kind == "lost host"


@pytest.mark.parametrize(
    "reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"]
)
def test_what_keeps_a_container_from_starting_is_reported(
    cluster: Cluster, spec: JobSpec, actor: Actor, reason: str
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    actor.wait_in("plain-1", reason, "it is not there")
    found = state(cluster)
    assert found.state == "pending"
    assert found.cause is not None
    assert found.cause.kind == "bad config"
    assert f"plain-1: {reason}: it is not there" in found.cause.summary
    assert found.cause.hint


def test_unschedulable_pods_and_exceeded_quotas_are_reported(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    actor.warn("plain", "Job", "FailedCreate", "exceeded quota: few, requested: pods=1")
    cause = state(cluster).cause
    assert cause is not None
    assert "exceeded quota: few" in cause.summary
    actor.make_pods("plain", 2)
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    actor.set_pod("plain-0", conditions=[{**full, "message": "0/3 nodes are available"}])
    cause = state(cluster).cause
    assert cause is not None
    assert "Unschedulable: 0/3 nodes are available" in cause.summary
