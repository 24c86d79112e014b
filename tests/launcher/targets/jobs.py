"""The jobs that the tests of the targets render: a minimal one, and one with all fields."""

from typing import Any

from launcher.spec import JobSpec, build_spec

KINDS = ("job", "jobset", "mpijob", "trainjob")

PLAIN: dict[str, Any] = {
    "name": "plain",
    "command": ["python", "train.py"],
    "ranks": 2,
    "backend": "horovod",
    "target": "kubernetes",
}

FULL: dict[str, Any] = {
    "name": "full",
    "command": ["python", "-m", "launcher.train", "--output", "/checkpoints/run", "--resume"],
    "ranks": 6,
    "backend": "horovod",
    "target": "kubernetes",
    "environment": {"DATA": "/data", "GREETING": "two words"},
    "resources": {"cpus": 4, "memory": "8GiB", "gpus": 1},
    "restart": {"max_restarts": 5, "backoff": 2.5, "exit_codes": [1, 137]},
    "hang_timeout": 600,
    "save_timeout": 120,
    "metrics": {"port": 9400},
    "container": {
        "image": "registry.example/team/syncbn@sha256:" + "0123456789abcdef" * 4,
        "slots": 2,
        "port": 30000,
        "join_timeout": 900,
        "shared_memory": "8Gi",
    },
    "kubernetes": {
        "namespace": "research",
        "node_selector": {"accelerator": "h200", "topology.kubernetes.io/zone": "a"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "vision"},
        ],
        "service_account": "trainer",
        "pull_secrets": ["registry"],
        "pull_policy": "IfNotPresent",
        "secrets": ["tracking"],
        "config_maps": ["settings"],
        "secret_environment": {"DATA_TOKEN": {"secret": "storage", "key": "token"}},
        "volumes": [
            {"claim": "checkpoints", "path": "/checkpoints"},
            {"claim": "images", "path": "/data", "read_only": True},
        ],
        "priority_class": "training",
        "queue": "vision",
        "time_limit": 86400,
        "keep": 3600,
    },
}


def job(fields: dict[str, Any], **kubernetes: Any) -> JobSpec:
    """The job of these fields, with more of its `[kubernetes]` table."""
    table = {**fields.get("kubernetes", {}), **kubernetes}
    return build_spec({**fields, "kubernetes": table})
