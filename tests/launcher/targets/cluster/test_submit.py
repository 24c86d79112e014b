"""Submitting jobs to a cluster and cancelling them: all of it or nothing, refusals in one line."""

import os
from pathlib import Path

import pytest

from launcher.errors import LauncherError, MissingToolError, UnknownRunError, UsageError
from launcher.spec import JobSpec
from launcher.targets.kubernetes import watch
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import KINDS
from launcher.targets.kubernetes.submit import cancel, submit
from launcher.targets.kubernetes.target import objects
from tests.launcher.targets.cluster.api_server import ApiServer, Fault
from tests.launcher.targets.cluster.conftest import REAL, Actor, Place, manifests
from tests.launcher.targets.jobs import PLAIN, job
from tests.waiting import until

JOB = KINDS["job"]


def test_submit_creates_the_objects_once_and_cancel_deletes_all(
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


def test_another_job_of_the_same_name_is_refused_and_unchanged(
    cluster: Cluster, spec: JobSpec, actor: Actor
) -> None:
    submit(cluster, manifests(spec))
    with pytest.raises(UsageError, match=r"name: another .* 'plain'.*launcher cancel plain"):
        submit(cluster, manifests(spec, command=("python", "other.py")))
    assert actor.names("jobs") == actor.names("services") == ["plain"]


def test_created_objects_are_deleted_when_the_job_is_refused(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    quota = 'jobs.batch "plain" is forbidden: exceeded quota: few, requested: count/jobs.batch=1'
    api_server.faults.append(Fault(403, "POST", "/jobs", quota))
    with pytest.raises(UsageError, match=r"exceeded quota: few.*request less"):
        submit(cluster, manifests(spec))
    assert actor.names("services") == actor.names("poddisruptionbudgets") == []


def test_the_other_objects_belong_to_the_job(
    cluster: Cluster, spec: JobSpec, api_server: ApiServer
) -> None:
    submit(cluster, manifests(spec))
    for (_, plural, _, _), value in api_server.store.objects.items():
        owners = value["metadata"].get("ownerReferences", [])
        assert [owner["kind"] for owner in owners] == ([] if plural == "jobs" else ["Job"])


def test_a_busy_server_is_retried_after_the_requested_time(
    cluster: Cluster, spec: JobSpec, actor: Actor, api_server: ApiServer
) -> None:
    busy = Fault(429, headers=(("Retry-After", "1"),))
    api_server.faults += [busy, Fault(503), busy]
    assert submit(cluster, manifests(spec)) is True
    assert not api_server.faults
    assert actor.names("jobs") == ["plain"]


def test_list_shows_our_jobs_of_every_kind_only(
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
        submit(cluster, objects(spec))
    except MissingToolError:
        assert REAL
        pytest.skip(f"the cluster has no {kind}")
    found, made = watch.find(cluster, "plain")
    assert made["kind"] == KINDS[kind].resource.kind
    assert watch.read_status(cluster, found, made).state == "pending"
    cancel(cluster, "plain")
    with pytest.raises(UnknownRunError):
        watch.find(cluster, "plain")


def test_a_missing_kind_says_what_to_install(
    cluster: Cluster, place: Place, api_server: ApiServer
) -> None:
    api_server.kinds.discard(("jobset.x-k8s.io", "jobsets"))
    spec = job(PLAIN, namespace=place.namespace, kind="jobset")
    with pytest.raises(MissingToolError, match=r"has no JobSet.*install the JobSet controller"):
        submit(cluster, objects(spec))
    assert watch.jobs(cluster) == []


def test_missing_permission_is_an_error_before_anything_is_submitted(
    cluster: Cluster, api_server: ApiServer
) -> None:
    cluster.check(JOB)
    api_server.forbidden = "create"
    with pytest.raises(UsageError, match=r"no permission to create jobs.*k8s/base/rbac.yaml"):
        cluster.check(JOB)


def test_no_cluster_and_no_credentials_are_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, api_server: ApiServer
) -> None:
    api_server.faults.append(Fault(401))
    with pytest.raises(UsageError, match="rejects your credentials"):
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


def test_the_tests_use_no_cluster_by_accident() -> None:
    assert REAL or "TEST_CLUSTER" not in os.environ
