"""What `--target compose` renders and refuses; tests/docker runs it in an engine."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import LauncherError, MissingToolError, SpecError
from launcher.spec import build_spec
from launcher.targets import Location
from launcher.targets.compose.target import ComposeTarget

JOB: dict[str, Any] = {
    "name": "digits",
    "command": ["python", "train.py", "--price", "5$"],
    "ranks": 6,
    "backend": "horovod",
    "target": "compose",
    "environment": {"A": "1"},
    "pass_environment": ["TOKEN_OF_THE_USER"],
    "resources": {"memory": "2GiB", "cpus": 2},
    "container": {"slots": 2, "shared_memory": "2Gi"},
}


def services(**changes: Any) -> dict[str, Any]:
    text = ComposeTarget(Location()).render(build_spec({**JOB, **changes}))
    return dict(yaml.safe_load(text)["services"])


def test_one_container_leads_and_the_others_join_it() -> None:
    rendered = services()
    head, worker = rendered["head"]["command"], rendered["worker"]["command"]
    assert (head[:2], head[3:5]) == (["join", "--job"], ["--workers", "2"])
    assert (worker[:2], worker[3:5]) == (["join", "--job"], ["--head", "head"])
    assert head[2] == worker[2]
    assert json.loads(head[2]) == {
        "name": "digits",
        "backend": "horovod",
        "resources": {"threads": 2, "memory": 2 * 2**30},
        "container": {"slots": 2},
    }
    assert rendered["worker"]["scale"] == 2
    assert "worker" not in services(ranks=2)


def test_containers_are_restricted_and_limited_and_dollars_are_escaped() -> None:
    for service in services().values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["mem_limit"] == 4 * 2**30
        assert service["cpus"] == 4
        assert service["shm_size"] == "2g"
        assert service["command"][-1] == "5$$"
        # Taken from the environment of the caller when it starts, and written nowhere.
        assert service["environment"] == ["A=1", "TOKEN_OF_THE_USER"]


def test_a_gpu_job_requests_devices_and_the_gpu_image() -> None:
    head = services(resources={"gpus": 1})["head"]
    (device,) = head["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert head["image"] == "syncbn:gpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ranks": 3}, "ranks: expected a multiple of the 2 slots"),
        ({"backend": "local"}, "backend: expected auto, mpi, horovod or tf for several ranks"),
        ({"container": {"image": "-x"}}, "container.image"),
    ],
)
def test_the_error_for_bad_input_names_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        services(**change)


def test_what_is_missing_is_named_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, spec = ComposeTarget(Location()), build_spec(JOB)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"apt-get install docker\.io"):
        target.check(spec)
    _program(tmp_path / "docker", "exit 1")
    with pytest.raises(MissingToolError, match="no Docker Compose"):
        target.check(spec)
    _program(tmp_path / "docker-compose", "exit 0")
    with pytest.raises(LauncherError, match="Docker Engine does not answer"):
        target.check(spec)
    _program(tmp_path / "docker", 'test "$1" = info')
    with pytest.raises(LauncherError, match=r"has no 'syncbn:cpu'; build it: docker build"):
        target.check(spec)


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    assert os.access(path, os.X_OK)
