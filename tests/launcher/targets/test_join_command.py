"""The fields of a job that the launcher in a container receives."""

import json

from launcher.spec import build_spec
from launcher.targets.join_command import job_json, join_arguments

JOB = {
    "name": "digits",
    "command": ["python", "train.py"],
    "ranks": 4,
    "backend": "tf",
    "hang_timeout": 60,
    "grace": 2,
    "restart": {"backoff_limit": 7, "jitter": 0.5, "exit_codes": [1]},
    "resources": {"cpus": 3, "memory": "2GiB", "gpus": 1},
    "metrics": {"port": 9400, "rank_labels": True, "push": "gateway:9091"},
    "environment": {"TOKEN": "secret"},
    "container": {"slots": 2, "port": 30000, "output": "/out", "image": "mine:1"},
    "kubernetes": {"namespace": "research"},
}


def test_the_job_json_has_what_the_inner_launcher_needs_and_no_secrets() -> None:
    told = json.loads(job_json(build_spec(JOB)))
    assert told == {
        "name": "digits",
        "backend": "tf",
        "hang_timeout": 60.0,
        "grace": 2.0,
        "restart": {"backoff_limit": 7.0, "jitter": 0.5, "exit_codes": [1]},
        # The container has its cores and GPUs already.
        "resources": {"threads": 3, "memory": 2 * 2**30},
        "metrics": {
            **{"port": 9400, "address": "0.0.0.0"},
            **{"rank_labels": True, "push": "gateway:9091"},
        },
        "container": {"slots": 2, "port": 30000},
        "output": "/out",
    }
    inside = build_spec({**told, "command": ["python"]})
    assert inside.restart == build_spec(JOB).restart


def test_defaults_are_omitted() -> None:
    plain = build_spec({"command": ["python", "train.py"], "ranks": 2})
    assert join_arguments(plain, "indexed", "job-0.job") == [
        *("join", "--job", "{}", "--workers", "1", "--head", "job-0.job"),
        *("--", "python", "train.py"),
    ]
