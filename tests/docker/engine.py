"""A real Docker engine for the tests: the one that answers, or one that is started for them.

`python -m tests.docker.engine` says what it finds and gets all of it ready.
"""

import atexit
import os
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

from tests.docker.base_image import make_base_image

STARTED_SECONDS = 60.0
_DEBIAN = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} trixie main\n"
_CACHE = Path.home() / ".cache" / "syncbn" / "tests"


@cache
def lacks() -> str | None:
    """Why there can be no engine here; None once one answers. Starts dockerd if it may."""
    docker = docker_command()
    if docker is None:
        return "no docker that can build with BuildKit: apt-get install docker.io"
    if not _answers(docker):
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            return "the Docker engine does not answer, and only root could start dockerd"
        if (problem := _start_engine(docker)) is not None:
            return problem
    return make_base_image(docker)


@cache
def docker_command() -> str | None:
    """The docker program that can build: from Docker 23 on that takes the buildx plugin."""
    for path in dict.fromkeys(filter(None, (shutil.which("docker"), "/usr/bin/docker"))):
        if not os.access(path, os.X_OK):
            continue
        told = _output([path, "--version"])  # Docker version 20.10.24+dfsg1, build 297e128
        major = told.removeprefix("Docker version ").partition(".")[0]
        if major.isdigit() and (int(major) < 23 or _output([path, "buildx", "version"])):
            return path
    return None


@cache
def compose_plugin() -> Path | None:
    """A DOCKER_CONFIG directory with Compose v2 in it, from the next Debian release; None if it
    cannot be had."""
    directory = _CACHE / "docker-config"
    plugin = directory / "cli-plugins" / "docker-compose"
    if not plugin.exists():
        if shutil.which("apt-get") is None:
            return None
        _fetch_compose(plugin)
    works = plugin.exists() and _output([str(plugin), "docker-cli-plugin-metadata"])
    return directory if works else None


def _fetch_compose(plugin: Path) -> None:
    work = _CACHE / "trixie"
    (work / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    # The mirror that this machine uses for its own release has the next one too.
    mirror = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).partition("\n")[0]
    (work / "sources.list").write_text(_DEBIAN.format(mirror=mirror))
    options = [
        f"Dir::Etc::SourceList={work}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::lists={work}/lists",
        f"Dir::Cache={work}",
    ]
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    for words in (["update"], ["download", "docker-compose/trixie"]):
        subprocess.run([*apt, *words], cwd=work, timeout=120, capture_output=True, check=False)
    for package in work.glob("docker-compose_2*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, work / "root"], timeout=60, check=True)
    found = work / "root/usr/libexec/docker/cli-plugins/docker-compose"
    if found.exists():
        plugin.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found, plugin)
    shutil.rmtree(work)


def _start_engine(docker: str) -> str | None:
    log = Path("/tmp/dockerd-of-the-tests.log")
    with log.open("wb") as output:
        engine = subprocess.Popen(
            ["dockerd"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    atexit.register(_stop_engine, engine)
    limit = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < limit:
        if _answers(docker):
            return None
        if engine.poll() is not None:
            break
        time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"dockerd could not be started: {' '.join(last)}"


def _stop_engine(engine: subprocess.Popen[bytes]) -> None:
    engine.send_signal(signal.SIGTERM)
    try:
        engine.wait(30)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()


def _answers(docker: str) -> bool:
    return bool(_output([docker, "info", "--format", "{{.ServerVersion}}"]))


def _output(command: list[str]) -> str:
    """What the command prints; "" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    print(lacks() or f"the engine answers {docker_command()}")
    print(f"Compose v2: {compose_plugin() or 'not to be had'}")
