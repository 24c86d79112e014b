"""docker-compose.yml as it is, under Compose v2 and docker-compose 1.29, and `--target compose`."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import pytest
import yaml

from tests.docker.containers import Engine
from tests.docker.engine import compose_plugin, docker_command
from tests.launcher.rendezvous.members import free_port
from tests.processes import REPOSITORY
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400, func_only=True)]

TRAIN = "python -m launcher.train --model dnn --output /runs/digits --resume"


@dataclass
class Compose:
    """One of the two programs, for one project of the tests."""

    command: list[str]
    project: str
    environment: dict[str, str]

    def __call__(self, *words: str, timeout: float = 240) -> tuple[int, str]:
        """The exit code and all output."""
        done = subprocess.run(
            [*self.command, "--project-name", self.project, *words],
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout

    @contextmanager
    def start(self, *words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The same in the background; whoever leaves early kills its containers, and so ends it.

        (A signal to `docker compose up` would not: Docker does not pass it on to its plugin.)
        """
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*self.command, "--project-name", self.project, *words],
                cwd=REPOSITORY,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    self("kill")
                    process.wait(60)


@pytest.fixture(params=["v2", "1.29"])
def program(request: pytest.FixtureRequest) -> str:
    """Which of the two programs reads the file."""
    return str(request.param)


@pytest.fixture
def compose(program: str, image: str) -> Iterator[Compose]:
    environment = {"IMAGE": image}
    if program == "v2":
        directory = compose_plugin()
        if directory is None:
            pytest.skip("no Compose v2 plugin in the next Debian release")
        environment["DOCKER_CONFIG"] = str(directory)
        command = [docker_command() or "docker", "compose"]
    else:
        if shutil.which("docker-compose") is None:
            pytest.skip("no docker-compose: apt-get install docker-compose")
        command = ["docker-compose"]
    compose = Compose(command, f"test{uuid.uuid4().hex[:8]}", environment)
    yield compose
    compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


@pytest.mark.parametrize("program", ["v2"], indirect=True)
def test_prometheus_sees_the_job_and_both_ranks(
    compose: Compose, engine: Engine, tmp_path: Path
) -> None:
    port = free_port()
    image = _prometheus_image(engine, tmp_path)
    # Longer than it takes to be seen: the test ends it.
    compose.environment |= {"COMMAND": f"{TRAIN} --epochs 500", "PROMETHEUS_PORT": str(port)}
    compose.environment["PROMETHEUS_IMAGE"] = image
    log = tmp_path / "log"
    with compose.start("up", "--exit-code-from", "head", log=log) as job:
        seen: list[dict[str, int]] = []

        def both_seen() -> bool:
            seen.append(_up(port))
            return seen[-1] == {"job": 1, "ranks": 2} or job.poll() is not None

        until(both_seen, 150, log.read_text)
    assert seen[-1] == {"job": 1, "ranks": 2}, log.read_text()


def test_up_trains_on_two_containers_and_ends_as_the_job(compose: Compose, engine: Engine) -> None:
    compose.environment["COMMAND"] = f"{TRAIN} --epochs 1"
    code, output = compose("up", "--exit-code-from", "head", "head", "worker")
    assert code == 0, output
    assert "2 ranks over mpi" in output
    volume = f"{compose.project}_runs:/runs"
    shown = engine(
        *("run", "--rm", "--volume", volume, "--entrypoint", "grep", engine.image),
        *("-rho", "weights .*", "/runs/digits/logs"),
    )
    digests = re.findall(r"weights ([0-9a-f]{8})", shown)
    assert len(digests) == 2
    assert len(set(digests)) == 1


def test_the_world_size_and_a_failure_come_from_the_environment_and_the_job(
    compose: Compose,
) -> None:
    compose.environment |= {"WORKERS": "2", "COMMAND": f"{TRAIN} --model nonsense"}
    code, output = compose("up", "--exit-code-from", "head", "head", "worker")
    assert code == 2, output
    assert "--model: expected one of" in output
    assert "3 ranks, backend mpi (the fastest one installed), in " in output


def test_the_file_has_one_private_network_and_publishes_on_loopback_alone() -> None:
    content = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert content["networks"]["job"]["internal"] is True
    for name in ("head", "worker"):
        service = content["services"][name]
        assert service["networks"] == ["job"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    ports = [port for one in content["services"].values() for port in one.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert content["services"]["grafana"]["profiles"] == ["grafana"]


def test_launcher_run_drives_the_same_and_takes_the_job_away(
    engine: Engine, tmp_path: Path
) -> None:
    name = f"test{engine.token}"
    words = ["run", "--target", "compose", "-np", "2", "--name", name, "--threads", "1"]
    words += ["--image", engine.image, "--", *TRAIN.split(), "--epochs", "1"]
    try:
        done = _launcher(engine, tmp_path)(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 ranks over mpi" in done.stdout
        assert engine("ps", "--all", "--quiet", "--filter", f"name={name}") == ""
    finally:
        engine("volume", "rm", "--force", f"{name}_runs", check=False)


def test_a_submitted_job_is_found_followed_and_cancelled(engine: Engine, tmp_path: Path) -> None:
    name = f"test{uuid.uuid4().hex[:8]}"
    run = _launcher(engine, tmp_path)
    words = ["submit", "--target", "compose", "-np", "2", "--name", name, "--threads", "1"]
    words += ["--image", engine.image, "--", *TRAIN.split(), "--epochs", "500"]
    try:
        submitted = run(*words)
        assert submitted.returncode == 0, submitted.stderr
        assert f"{name} is running in 2 containers" in submitted.stdout
        assert f"launcher logs {name} --follow --target compose\n" in submitted.stdout
        again = run(*words)
        assert again.returncode == 2
        assert f"launcher cancel {name} --target compose" in again.stderr
        status = run("status", name, "--target", "compose")
        assert (status.returncode, status.stdout) == (
            0,
            f"{name}: running, containers: 2 running\n",
        )
        listed = json.loads(run("list", "--target", "compose", "--json").stdout.splitlines()[-1])
        assert (listed["name"], listed["state"], len(listed["containers"])) == (name, "running", 2)
        until(lambda: "epoch" in run("logs", name, "--target", "compose").stdout, 120)
        of_one = run("logs", name, "--target", "compose", "--rank", "1").stdout.splitlines()
        assert all(line.startswith("[1]") for line in of_one)
        worker = run("logs", name, "--target", "compose", "--worker", "1").stdout
        assert f"worker 1 of {name}, led by head" in worker
        cancelled = run("cancel", name, "--target", "compose")
        assert cancelled.stdout == f"{name}: its ranks have saved; its containers are removed\n"
        gone = run("status", name, "--target", "compose")
        assert gone.returncode == 2
        assert f"no containers of a job {name!r}" in gone.stderr
    finally:
        run("cancel", name, "--now", "--target", "compose")
        engine("volume", "rm", "--force", f"{name}_runs", check=False)


def _launcher(engine: Engine, directory: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line with the programs of this engine."""
    plugin = compose_plugin() if shutil.which("docker-compose") is None else None
    variables = {"DOCKER_CONFIG": str(plugin)} if plugin else {}
    path = f"{Path(engine.docker).parent}:{os.environ['PATH']}"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            cwd=directory,
            env={**os.environ, **variables, "PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def _up(port: int) -> dict[str, int]:
    """How many targets of each job answer Prometheus."""
    query = f"http://127.0.0.1:{port}/api/v1/query?query=sum%20by%20(job)%20(up)"
    try:
        with urllib.request.urlopen(query, timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
    except (OSError, HTTPException):
        return {}
    return {one["metric"]["job"]: int(one["value"][1]) for one in found}


def _prometheus_image(engine: Engine, directory: Path) -> str:
    """Debian's Prometheus in an image, for want of a registry."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("no prometheus: apt-get install prometheus")
    dockerfile = (
        "FROM python:3.11-slim-bookworm\n"
        "COPY prometheus /bin/prometheus\n"
        "RUN mkdir /prometheus && chown 65534:65534 /prometheus\n"
        "USER 65534:65534\n"
        'ENTRYPOINT ["/bin/prometheus"]\n'
    )
    context = directory / "prometheus-image"
    context.mkdir()
    shutil.copy(prometheus, context / "prometheus")
    (context / "Dockerfile").write_text(dockerfile)
    engine("build", "--tag", "syncbn-test/prometheus", str(context), timeout=120)
    return "syncbn-test/prometheus"
