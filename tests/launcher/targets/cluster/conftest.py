"""A cluster for the tests: their own API server, or with TEST_CLUSTER=1 the one KUBECONFIG names.

Neither needs controllers or nodes: `Actor` plays them, over the API.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from launcher.spec import JobSpec
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.target import objects
from tests.launcher.targets.cluster.api_server import LAUNCHER_TOKEN, TOKEN, ApiServer
from tests.launcher.targets.jobs import PLAIN, job
from tests.processes import REPOSITORY

REAL = os.environ.get("TEST_CLUSTER") == "1"


@dataclass(frozen=True)
class Place:
    """Where the tests' jobs go: a namespace of their own, and how to get there.

    The launcher goes by `kubeconfig`, with the rights of k8s/base/rbac.yaml on the tests' own
    server; whoever plays the cluster goes by `admin`.
    """

    namespace: str
    kubeconfig: str
    admin: str


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """The tests' own server, for tests that make it fail."""
    if REAL:
        pytest.skip("only the tests' own API server fails when it is told to")
    with ApiServer() as server:
        yield server


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A namespace on a cluster."""
    namespace = f"launcher-test-{uuid.uuid4().hex[:8]}"
    if REAL:
        kubeconfig = os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config"))
        core = client.CoreV1Api(_api(kubeconfig, namespace))
        core.create_namespace({"metadata": {"name": namespace}})
        yield Place(namespace, kubeconfig, kubeconfig)
        core.delete_namespace(namespace)
        return
    path = tmp_path / "kubeconfig"
    server: ApiServer = request.getfixturevalue("api_server")
    path.write_text(yaml.safe_dump(_kubeconfig(server.url, LAUNCHER_TOKEN)))
    admin = tmp_path / "admin"
    admin.write_text(yaml.safe_dump(_kubeconfig(server.url, TOKEN)))
    yield Place(namespace, str(path), str(admin))


@pytest.fixture
def cluster(place: Place, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("KUBECONFIG", place.kubeconfig)
    return _connect(place)


@pytest.fixture
def spec(place: Place) -> JobSpec:
    """A job of two pods that no built-in controller touches."""
    return job(PLAIN, namespace=place.namespace, managed_by="launcher.example/tests")


@pytest.fixture
def actor(place: Place, cluster: Cluster) -> "Actor":
    return Actor(_api(place.admin, place.namespace), place.namespace)


class Actor:
    """Does what the Job controller, the scheduler and a kubelet would."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._namespace = namespace

    def make_pods(self, name: str, count: int, label: str = "batch.kubernetes.io/job-name") -> None:
        for index in range(count):
            labels = {label: name, "batch.kubernetes.io/job-completion-index": str(index)}
            pod = {
                "metadata": {"name": f"{name}-{index}", "labels": labels},
                "spec": {
                    # No scheduler of a real cluster schedules it.
                    "schedulerName": "tests",
                    "containers": [{"name": "trainer", "image": "none"}],
                },
            }
            self._core.create_namespaced_pod(self._namespace, pod)

    def set_pod(self, name: str, **status: Any) -> None:
        self._core.patch_namespaced_pod_status(
            name, self._namespace, {"status": status}, _content_type=_MERGE
        )

    def end_pod(self, name: str, code: int, reason: str = "", message: str = "") -> None:
        """The pod's container has ended with this code."""
        ended: dict[str, Any] = {"exitCode": code, "finishedAt": _now(), "startedAt": _now()}
        ended |= {"reason": reason or ("Completed" if code == 0 else "Error"), "message": message}
        self.set_pod(
            name,
            phase="Failed" if code else "Succeeded",
            containerStatuses=[_container_status({"terminated": ended})],
        )

    def wait_in(self, name: str, reason: str, message: str) -> None:
        """The pod's container waits for something."""
        state = {"waiting": {"reason": reason, "message": message}}
        self.set_pod(name, phase="Pending", containerStatuses=[_container_status(state)])

    def set_job(self, name: str, condition: str, reason: str = "", message: str = "") -> None:
        """The job has a condition from now on."""
        stated = {"type": condition, "status": "True", "reason": reason, "message": message}
        stated |= {"lastTransitionTime": _now(), "lastProbeTime": _now()}
        conditions = [stated]
        status: dict[str, Any] = {"startTime": _now()}
        if condition == "Complete":
            # The API server requires SuccessCriteriaMet before a Job is complete.
            conditions.insert(0, {**stated, "type": "SuccessCriteriaMet"})
            status["completionTime"] = _now()
        elif condition == "Failed":
            conditions.insert(0, {**stated, "type": "FailureTarget"})
        place = ("batch", "v1", self._namespace, "jobs", name)
        change = {"status": {**status, "conditions": conditions}}
        self._custom.patch_namespaced_custom_object_status(*place, change, _content_type=_MERGE)

    def warn(self, about: str, kind: str, reason: str, message: str) -> None:
        """An event of type Warning."""
        event = {
            "metadata": {"name": f"{about}.{uuid.uuid4().hex[:8]}"},
            "involvedObject": {"kind": kind, "name": about, "namespace": self._namespace},
            "type": "Warning",
            "reason": reason,
            "message": message,
        }
        self._core.create_namespaced_event(self._namespace, event)

    def names(self, kind: str) -> list[str]:
        listing = {
            "services": self._core.list_namespaced_service,
            "pods": self._core.list_namespaced_pod,
        }
        if kind in listing:
            found = json.loads(listing[kind](self._namespace, _preload_content=False).data)
        else:
            group = "policy" if kind == "poddisruptionbudgets" else "batch"
            found = self._custom.list_namespaced_custom_object(group, "v1", self._namespace, kind)
        return [one["metadata"]["name"] for one in found["items"]]


@pytest.fixture
def launcher(place: Place) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line against the cluster."""

    def run(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            cwd=REPOSITORY,
            env={**os.environ, "KUBECONFIG": place.kubeconfig},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def manifests(spec: JobSpec, **changes: object) -> list[dict]:
    """The objects of the job, with these fields changed."""
    return objects(spec.model_copy(update=changes))


_MERGE = "application/merge-patch+json"


def _connect(place: Place) -> Cluster:
    return Cluster.connect(None, place.namespace)


def _api(kubeconfig: str, namespace: str) -> client.ApiClient:
    from kubernetes import config

    return config.new_client_from_config(config_file=kubeconfig)


def _kubeconfig(url: str, token: str) -> dict[str, Any]:
    context = {"cluster": "tests", "user": "tests", "namespace": "default"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": url}}],
        "users": [{"name": "tests", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": context}],
    }


def _container_status(state: dict[str, Any]) -> dict[str, Any]:
    status = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
    return {**status, "state": state}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
