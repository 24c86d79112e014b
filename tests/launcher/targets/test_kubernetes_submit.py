"""Submitting, watching, reading and cancelling jobs through the API of a cluster."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import LauncherError, MissingToolError, UnknownRunError, UsageError
from launcher.spec import JobSpec
from launcher.targets.kubernetes import logs, watch
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import KINDS
from launcher.targets.kubernetes.submit import cancel, submit
from launcher.targets.kubernetes.target import KubernetesTarget
from tests.launcher.targets.api_server import ApiServer, Fault
from tests.launcher.targets.conftest import REAL, Actor, Place, until
from tests.launcher.targets.jobs import PLAIN, job

JOB = KINDS["job"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def manifests(spec: JobSpec, **changes: object) -> list[dict]:
    return KubernetesTarget(spec.model_copy(update=changes)).manifests()


def state(cluster: Cluster, name: str = "plain") -> watch.JobStatus:
    return watch.look(cluster, *watch.find(cluster, name))


def test_submit_makes_the_objects_once_and_cancel_takes_all_away(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    assert submit(cluster, manifests(spec)) is True
    assert submit(cluster, manifests(spec)) is False  # the very same again
    assert actor.names("jobs") == actor.names("services") == ["plain"]
    assert actor.names("poddisruptionbudgets") == ["plain"]
    cancel(cluster, "plain")
    for kind in ("jobs", "services", "poddisruptionbudgets"):
        until(lambda kind=kind: actor.names(kind) == [])  # type: ignore[misc]
    with pytest.raises(UnknownRunError, match="no job 'plain'"):
        cancel(cluster, "plain")


def test_another_job_of_the_same_name_is_refused_and_left_alone(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    with pytest.raises(UsageError, match=r"name: another .* 'plain'.*launcher cancel plain"):
        submit(cluster, manifests(spec, command=("python", "other.py")))
    assert actor.names("jobs") == actor.names("services") == ["plain"]


def test_what_was_made_is_taken_back_when_the_job_itself_is_refused(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    quota = 'jobs.batch "plain" is forbidden: exceeded quota: few, requested: count/jobs.batch=1'
    api_server.faults.append(Fault(403, "POST", "/jobs", quota))
    with pytest.raises(UsageError, match=r"exceeded quota: few.*ask for less"):
        submit(cluster, manifests(spec))
    assert actor.names("services") == actor.names("poddisruptionbudgets") == []


def test_the_other_objects_belong_to_the_job(
    cluster: Cluster, spec: JobSpec, api_server: ApiServer
) -> None:
    submit(cluster, manifests(spec))
    for (_, plural, _, _), value in api_server.store.objects.items():
        owners = value["metadata"].get("ownerReferences", [])
        assert [owner["kind"] for owner in owners] == ([] if plural == "jobs" else ["Job"])


def test_a_busy_server_is_asked_again_after_the_time_it_names(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    busy = Fault(429, headers=(("Retry-After", "1"),))
    api_server.faults += [busy, Fault(503), busy]
    assert submit(cluster, manifests(spec)) is True
    assert not api_server.faults
    assert actor.names("jobs") == ["plain"]


def test_a_job_goes_from_pending_to_running_to_succeeded(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    assert state(cluster).state == "pending"
    actor.make_pods("plain", 2)
    seen: list[watch.JobStatus] = []
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


def test_following_survives_dropped_watches_and_forgotten_versions(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    api_server.watch_events = 0
    seen: list[watch.JobStatus] = []
    thread = threading.Thread(target=lambda: seen.extend(watch.follow(cluster, JOB, "plain")))
    thread.start()
    actor.set_pod("plain-0", phase="Running")
    until(lambda: any(one.pods.get("Running") == 1 for one in seen))
    gone = len([1 for _, path in api_server.requests if "watch" in path])
    api_server.compact()
    api_server.store.oldest += 1000  # every version that a list gives is too old to watch from
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
def test_an_exit_code_alone_tells_a_class(
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


def test_evicted_and_lost_pods_are_told_apart(
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
def test_what_keeps_a_container_from_starting_is_said_plainly(
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


def test_pods_without_room_or_quota_say_so(cluster: Cluster, spec: JobSpec, actor: Actor) -> None:
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


def test_list_shows_every_kind_and_nothing_of_others(
    cluster: Cluster, place: Place, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    submit(cluster, manifests(spec, name="second"))
    assert [one.name for one in watch.jobs(cluster)] == ["plain", "second"]
    assert {one.kind for one in watch.jobs(cluster)} == {"Job"}


@pytest.mark.parametrize("kind", ["jobset", "mpijob", "trainjob"])
def test_custom_kinds_are_submitted_found_and_cancelled(
    cluster: Cluster, place: Place, kind: str
) -> None:
    spec = job(PLAIN, namespace=place.namespace, kind=kind)
    try:
        submit(cluster, KubernetesTarget(spec).manifests())
    except MissingToolError:
        assert REAL
        pytest.skip(f"the cluster has no {kind}")
    found, made = watch.find(cluster, "plain")
    assert made["kind"] == KINDS[kind].resource.kind
    assert watch.look(cluster, found, made).state == "pending"
    cancel(cluster, "plain")
    with pytest.raises(UnknownRunError):
        watch.find(cluster, "plain")


def test_a_missing_kind_says_what_to_install(
    cluster: Cluster, place: Place, api_server: ApiServer
) -> None:
    api_server.kinds.discard(("jobset.x-k8s.io", "jobsets"))
    spec = job(PLAIN, namespace=place.namespace, kind="jobset")
    with pytest.raises(MissingToolError, match=r"knows no JobSet.*install the JobSet controller"):
        submit(cluster, KubernetesTarget(spec).manifests())
    assert watch.jobs(cluster) == []


def test_no_permission_is_told_before_anything_is_sent(
    cluster: Cluster, api_server: ApiServer
) -> None:
    cluster.check(JOB)
    api_server.forbidden = "create"
    with pytest.raises(UsageError, match=r"no permission to create jobs.*k8s/rbac.yaml"):
        cluster.check(JOB)


def test_logs_are_read_across_cuts_no_line_lost_none_twice(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    actor.set_pod("plain-0", phase="Running")
    api_server.say("plain-0", *(f"line {number}" for number in range(40)))
    api_server.log_bytes.extend([0, 100, 700])
    pod = logs.leading_pod(cluster, JOB, "plain", None)
    assert pod is not None
    read: list[str] = []
    follow = logs.lines(cluster, pod, "trainer", follow=True)
    thread = threading.Thread(target=lambda: read.extend(follow))
    thread.start()
    until(lambda: len(read) >= 40)
    api_server.say("plain-0", "one more", "and the last")
    actor.end_pod("plain-0", 0)
    thread.join(20)
    assert not thread.is_alive()
    assert read == [f"line {number}" for number in range(40)] + ["one more", "and the last"]


def test_no_cluster_and_no_way_in_are_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, api_server: ApiServer
) -> None:
    api_server.faults.append(Fault(401))
    with pytest.raises(UsageError, match="does not know who you are"):
        cluster.list(JOB.resource)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="set KUBECONFIG"):
        Cluster.connect(None, None)
    with pytest.raises(UsageError, match="context"):
        Cluster.connect("elsewhere", None)


def test_a_cluster_that_does_not_answer_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if REAL:
        pytest.skip("only the tests' own API server can be moved")
    moved = tmp_path / "moved"
    text = Path(place.kubeconfig).read_text()
    port = text.split("127.0.0.1:")[1].split()[0]
    moved.write_text(text.replace(f"127.0.0.1:{port}", "127.0.0.1:1"))
    monkeypatch.setenv("KUBECONFIG", str(moved))
    with pytest.raises(LauncherError, match=r"no answer from the cluster at http://127.0.0.1:1:"):
        Cluster.connect(None, place.namespace).check(JOB)


def test_the_commands_of_a_job_from_submit_to_cancel(
    launcher: Run, place: Place, actor: Actor, tmp_path: Path
) -> None:
    words = ["--target", "kubernetes", "--namespace", place.namespace]
    config = tmp_path / "job.toml"
    config.write_text('[kubernetes]\nmanaged_by = "launcher.example/tests"\n')
    command = ["submit", *words, "--config", str(config), "--name", "plain", "-np", "2"]
    submitted = launcher(*command, "--", "python", "train.py")
    assert submitted.returncode == 0, submitted.stderr
    assert "Job plain in namespace" in submitted.stdout
    assert f"launcher logs plain --follow --target kubernetes --namespace {place.namespace}" in (
        " ".join(submitted.stdout.split())
    )
    again = launcher(*command, "--", "python", "train.py")
    assert "the very same" in again.stdout
    actor.make_pods("plain", 2)
    told = "launcher: oom: rank 1 on worker-1@plain-1 ran out of memory (exit code 1)"
    actor.end_pod("plain-0", 1, message=told)
    actor.set_job("plain", "Failed", "PodFailurePolicy")
    status = launcher("status", "plain", *words, "--json")
    assert status.returncode == 1
    assert json.loads(status.stdout)["cause"]["class"] == "oom"
    waited = launcher(*command, "--wait", "--", "python", "train.py")
    assert waited.returncode == 1
    assert "oom: rank 1" in waited.stdout
    listed = launcher("list", *words, "--json")
    assert [json.loads(line)["name"] for line in listed.stdout.splitlines()] == ["plain"]
    cancelled = launcher("cancel", "plain", *words)
    assert cancelled.returncode == 0, cancelled.stderr
    until(lambda: actor.names("jobs") == [])
    gone = launcher("status", "plain", *words)
    assert gone.returncode == 2
    assert gone.stderr.startswith("launcher: no job 'plain'")


def test_logs_of_the_command_line_can_be_of_one_rank(
    launcher: Run,
    place: Place,
    cluster: Cluster,
    spec: JobSpec,
    actor: Actor,
    api_server: ApiServer,
) -> None:
    submit(cluster, manifests(spec))
    actor.make_pods("plain", 2)
    actor.end_pod("plain-0", 0)
    api_server.say("plain-0", "[0] first", "[1] second", "launcher: succeeded")
    words = ["plain", "--target", "kubernetes", "--namespace", place.namespace]
    assert launcher("logs", *words).stdout.splitlines() == [
        "[0] first",
        "[1] second",
        "launcher: succeeded",
    ]
    assert launcher("logs", *words, "--rank", "1").stdout == "[1] second\n"
    assert "no such pod" in launcher("logs", *words, "--worker", "7").stderr


def test_the_environment_of_the_tests_names_no_cluster_by_accident() -> None:
    assert REAL or "TEST_CLUSTER" not in os.environ
