"""What `render --target kubernetes` prints: valid for the cluster, and the same as yesterday.

After a wanted change: REWRITE_GOLDEN=1 make test ARGS=tests/launcher/targets
"""

import os
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from launcher.errors import SpecError
from launcher.spec import build_spec, read_toml
from launcher.targets import Location, target_for
from launcher.targets.kubernetes.target import KubernetesTarget
from tests.launcher.targets.jobs import FULL, KINDS, PLAIN, job
from tests.launcher.targets.schemas import pod_specs, validate
from tests.processes import REPOSITORY

GOLDEN = Path(__file__).parent / "golden"
CUSTOM = {"jobset", "mpijob", "trainjob"}
EXAMPLE = REPOSITORY / "k8s" / "example.toml"


def rendered(fields: dict[str, Any], kind: str, **kubernetes: Any) -> list[dict[str, Any]]:
    text = KubernetesTarget(Location()).render(job(fields, kind=kind, **kubernetes))
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [PLAIN, FULL], ids=["plain", "full"])
def test_the_manifests_equal_the_golden_files(fields: dict[str, Any], kind: str) -> None:
    text = KubernetesTarget(Location()).render(job(fields, kind=kind)) + "\n"
    golden = GOLDEN / f"{fields['name']}-{kind}.yaml"
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [PLAIN, FULL], ids=["plain", "full"])
def test_the_api_accepts_the_manifests(fields: dict[str, Any], kind: str) -> None:
    for manifest in rendered(fields, kind):
        validate(manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_field_is_rejected(kind: str) -> None:
    main = rendered(PLAIN, kind)[-1]
    assert main["kind"].lower() == kind
    main["spec"]["mispelt"] = 3
    with pytest.raises(Exception, match="mispelt"):
        validate(main)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_meet_the_restricted_pod_security_standard(kind: str) -> None:
    pods = [pod for manifest in rendered(FULL, kind) for pod in pod_specs(manifest)]
    assert len(pods) == (2 if kind == "mpijob" else 1)
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(
            volume.keys() <= {"name", "emptyDir", "persistentVolumeClaim"}
            for volume in pod["volumes"]
        )
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_pods_have_time_to_save_and_manifests_no_secret_values(kind: str) -> None:
    manifests = rendered(FULL, kind)
    for pod in (pod for manifest in manifests for pod in pod_specs(manifest)):
        assert pod["terminationGracePeriodSeconds"] > FULL["save_timeout"] + 4
        variables = {one["name"]: one for one in pod["containers"][0]["env"]}
        assert variables["DATA_TOKEN"]["valueFrom"] == {
            "secretKeyRef": {"name": "storage", "key": "token"}
        }


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifests_in_k8s_are_those_of_the_example(kind: str) -> None:
    fields = read_toml(EXAMPLE)
    fields["kubernetes"]["kind"] = kind
    spec = build_spec(fields)
    text = target_for(spec).render(spec) + "\n"
    path = REPOSITORY / "k8s" / (f"{kind}.yaml" if kind in CUSTOM else "base/job.yaml")
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["base", "overlays/gpu"])
def test_the_api_accepts_what_kustomize_builds(name: str) -> None:
    if which("kubectl") is None:
        pytest.skip("no kubectl, which has kustomize in it")
    built = subprocess.run(
        ["kubectl", "kustomize", str(REPOSITORY / "k8s" / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    manifests = list(yaml.safe_load_all(built))
    for manifest in manifests:
        validate(manifest)
    (pod,) = (pod for manifest in manifests for pod in pod_specs(manifest))
    asked = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert asked == ("1" if name.endswith("gpu") else None)


@pytest.mark.parametrize("path", ["rbac.yaml", "claim.yaml", "networkpolicy.yaml"])
def test_the_api_accepts_the_other_manifests(path: str) -> None:
    for manifest in yaml.safe_load_all((REPOSITORY / "k8s/base" / path).read_text()):
        validate(manifest)


def applied(path: str) -> dict[str, dict[str, Any]]:
    """The manifests of a file below k8s, by kind and name."""
    manifests = yaml.safe_load_all((REPOSITORY / "k8s" / path).read_text())
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in manifests}


def test_the_network_policy_and_the_monitor_name_the_pods_and_ports_of_the_job() -> None:
    template = applied("base/job.yaml")["Job/digits"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    policy = applied("base/networkpolicy.yaml")["NetworkPolicy/digits"]["spec"]
    pods = policy["podSelector"]
    assert pods["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    # Pods of the job among themselves; Prometheus to the metrics and nothing else; names.
    inside, prometheus = policy["ingress"]
    assert inside == {"from": [{"podSelector": pods}]}
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert prometheus["from"] == [{"namespaceSelector": monitoring}]
    served = {"job-metrics", "rank-metrics"}
    assert {port["port"] for port in prometheus["ports"]} == served <= ports
    outside, names = policy["egress"]
    assert outside == {"to": [{"podSelector": pods}]}
    assert [(port["port"], port["protocol"]) for port in names["ports"]] == [
        (53, "UDP"),
        (53, "TCP"),
    ]
    (monitor,) = applied("monitoring/podmonitor.yaml").values()
    assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} == served
    chosen = monitor["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= template["metadata"]["labels"].items()


def test_the_role_has_exactly_the_rights_that_the_launcher_needs() -> None:
    """That it has those it needs is what the tests of the cluster find: they have no others."""
    objects = applied("base/rbac.yaml")
    assert objects["ServiceAccount/trainer"]["automountServiceAccountToken"] is False
    assert objects["RoleBinding/launcher"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "launcher"}
    ], "the pods have no rights"
    assert {kind.split("/")[0] for kind in objects} == {"ServiceAccount", "Role", "RoleBinding"}
    changing, reading = {"create", "patch", "delete", "deletecollection"}, {"get", "list", "watch"}
    for rule in objects["Role/launcher"]["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        assert set(rule["verbs"]) <= changing | reading
        assert not {"*", "secrets", "pods/exec", "roles"} & {*rule["resources"], *rule["apiGroups"]}
        if "pods" in rule["resources"][0] or rule["resources"] == ["events"]:
            assert not {"create", "patch", "delete"} & set(rule["verbs"])


def test_the_alerts_for_the_operator_are_the_alert_rules() -> None:
    rules = yaml.safe_load((REPOSITORY / "k8s/alert-rules.yaml").read_text())
    alerts = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "launcher"},
        "spec": rules,
    }
    path = REPOSITORY / "k8s/monitoring/alerts.yaml"
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(yaml.safe_dump(alerts, sort_keys=False, width=100))
    assert yaml.safe_load(path.read_text()) == alerts


def test_a_queued_job_is_suspended_and_tolerations_are_rendered() -> None:
    queued = rendered(FULL, "job")[-1]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "vision"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in rendered(PLAIN, "job")[-1]["spec"]


def test_a_disruption_budget_counts_pods() -> None:
    _, budget, _ = rendered(FULL, "job")
    assert budget["spec"]["minAvailable"] == 3
    assert [one["kind"] for one in rendered(PLAIN, "job", disruption_budget=False)] == [
        "Service",
        "Job",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "0digits"}, "name: expected a letter first"),
        ({"name": "x" * 41}, "name: expected a letter first and at most 40"),
        ({"ranks": 3, "container": {"slots": 2}}, "ranks: expected a multiple of the 2 slots"),
        ({"hosts": [{"name": "h1", "slots": 2}]}, "hosts:"),
        ({"pass_environment": ["HOME"]}, "pass_environment: .* --env-secret"),
        ({"backend": "local"}, "backend: expected auto, mpi, horovod or tf"),
        ({"container": {"image": "No Image"}}, "container.image"),
        ({"container": {"shared_memory": "1 GB"}}, "container.shared_memory"),
        ({"kubernetes": {"namespace": "My_Space"}}, "kubernetes.namespace"),
        ({"kubernetes": {"cpu": "many"}}, "kubernetes.cpu"),
        ({"kubernetes": {"memory": "4 gigs"}}, "kubernetes.memory"),
        ({"kubernetes": {"node_selector": {"a b": "c"}}}, "kubernetes.node_selector"),
        ({"kubernetes": {"queue": "A"}}, "kubernetes.queue"),
        ({"kubernetes": {"volumes": [{"claim": "a", "path": "b"}]}}, "kubernetes.volumes.0.path"),
        ({"kubernetes": {"tolerations": [{"operator": "Equal"}]}}, "kubernetes.tolerations.0"),
        ({"kubernetes": {"time_limit": 0}}, "kubernetes.time_limit"),
        ({"kubernetes": {"kind": "cronjob"}}, "kubernetes.kind"),
        ({"kubernetes": {"nodes": 3}}, "kubernetes.nodes: no such field"),
        ({"kubernetes": {"kind": "mpijob", "user": 2000}}, "kubernetes.user"),
        ({"kubernetes": {"kind": "trainjob", "managed_by": "x.y/z"}}, "kubernetes.managed_by"),
    ],
)
def test_the_error_for_bad_input_names_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        KubernetesTarget(Location()).render(build_spec({**PLAIN, **change}))
