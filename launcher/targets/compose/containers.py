"""The containers of jobs in Docker Engine, found by a label, without the Compose file."""

import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from launcher.errors import LauncherError, MissingToolError, UnknownRunError
from launcher.targets.base import JobStatus

JOB = "launcher.job"  # the label whose value is the job's name
_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
_NUMBER = "com.docker.compose.container-number"
_SECONDS = 20.0


@dataclass(frozen=True)
class Container:
    """`state` as Docker calls it: created, running, exited, ..."""

    id: str
    job: str
    service: str
    number: int
    state: str
    exit_code: int
    created: str


class ContainerJob(JobStatus):
    """A job by its containers. It has ended when its leader has."""

    def __init__(self, name: str, containers: Sequence[Container], leader: str) -> None:
        self.name = name
        self.containers = tuple(sorted(containers, key=lambda one: (one.service, one.number)))
        self.leader = next((one for one in self.containers if one.service == leader), None)
        self.state = self._state()

    @property
    def ended(self) -> bool:
        return self.state in {"succeeded", "failed", "stopped"}

    @property
    def exit_code(self) -> int:
        if not self.ended:
            return 0
        return 1 if self.leader is None else self.leader.exit_code

    def summary(self) -> str:
        return f"{self.name}: {self.state}, containers: {self._counts()}"

    def renderable(self) -> RenderableType:
        return Text(self.summary())

    def as_json(self) -> dict[str, Any]:
        containers = [asdict(one) for one in self.containers]
        fields = {"name": self.name, "state": self.state, "exit_code": self.exit_code}
        return {**fields, "containers": containers}

    def row(self) -> Mapping[str, str]:
        created = min(one.created for one in self.containers)
        return {
            "job": self.name,
            "state": self.state,
            "submitted": created[:19],
            "containers": self._counts(),
        }

    def _state(self) -> str:
        if self.leader is None:
            return "failed"
        if self.leader.state in {"created", "restarting"}:
            return "starting"
        if self.leader.state not in {"exited", "dead"}:
            return "running"
        code = self.leader.exit_code
        return "succeeded" if code == 0 else "stopped" if code in {130, 143} else "failed"

    def _counts(self) -> str:
        counts = Counter(one.state for one in self.containers)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def find(name: str, leader: str) -> ContainerJob:
    """Raises UnknownRunError."""
    containers = _containers(f"{JOB}={name}")
    if not containers:
        raise UnknownRunError(
            f"no containers of a job {name!r}; see: launcher list --target compose"
        )
    return ContainerJob(name, containers, leader)


def jobs(leader: str) -> list[ContainerJob]:
    """All jobs that have containers, the oldest first."""
    by_job: dict[str, list[Container]] = {}
    for container in sorted(_containers(JOB), key=lambda one: one.created):
        by_job.setdefault(container.job, []).append(container)
    return [ContainerJob(name, containers, leader) for name, containers in by_job.items()]


def remove(name: str) -> None:
    """Removes the containers and networks of a job, but not its volume with the runs."""
    if ids := [one.id for one in _containers(f"{JOB}={name}")]:
        docker("rm", "--force", *ids)
    networks = docker("network", "ls", "--quiet", "--filter", f"label={_PROJECT}={name}").split()
    if networks:
        docker("network", "rm", *networks)


def docker(*words: str, seconds: float | None = None) -> str:
    """The output of `docker WORDS`. Raises LauncherError if it fails."""
    try:
        done = subprocess.run(
            ["docker", *words], capture_output=True, text=True, check=False, timeout=seconds
        )
    except FileNotFoundError:
        raise MissingToolError("docker is not installed; apt-get install docker.io") from None
    except subprocess.TimeoutExpired:
        raise LauncherError(f"docker {words[0]} has not answered within {seconds:g} s") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise LauncherError(f"docker {words[0]}: {last[-1]}")
    return done.stdout


def _containers(label: str) -> list[Container]:
    ids = docker("ps", "--all", "--quiet", "--filter", f"label={label}", seconds=_SECONDS).split()
    found = json.loads(docker("inspect", *ids, seconds=_SECONDS)) if ids else []
    return [
        Container(
            id=one["Id"],
            job=one["Config"]["Labels"][JOB],
            service=one["Config"]["Labels"].get(_SERVICE, ""),
            number=int(one["Config"]["Labels"].get(_NUMBER, 1)),
            state=one["State"]["Status"],
            exit_code=int(one["State"]["ExitCode"]),
            created=one["Created"],
        )
        for one in found
    ]
