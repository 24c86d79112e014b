"""The logs of a job on a cluster, and the whole of the command line for one."""

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from launcher.spec import JobSpec
from launcher.targets.kubernetes import logs
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import KINDS
from launcher.targets.kubernetes.submit import submit
from tests.launcher.targets.cluster.api_server import ApiServer
from tests.launcher.targets.cluster.conftest import Actor, Place, manifests
from tests.waiting import until

JOB = KINDS["job"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_logs_are_read_across_dropped_connections_without_loss_or_repetition(
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
    assert "the same job exists already" in again.stdout
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
