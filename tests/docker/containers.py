"""The containers of one test: on a network of their own, looked into, killed, gone after it."""

import json
import subprocess
import uuid
from typing import Self

from tests.docker.engine import docker_command
from tests.waiting import until

# Small and quiet: two cores serve all containers.
_ENVIRONMENT = ("TF_NUM_INTRAOP_THREADS=1", "OMP_NUM_THREADS=1")
_SAFE = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)


class Engine:
    """`docker` with a network of its own while open. Names are made unique; at the end everything
    is removed."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.docker = docker_command() or "docker"
        self.token = uuid.uuid4().hex[:8]
        self.network = f"test-{self.token}"
        self._containers: list[str] = []
        self._volumes: list[str] = []

    def __enter__(self) -> Self:
        self("network", "create", "--internal", self.network)
        return self

    def __exit__(self, *_: object) -> None:
        if self._containers:
            self("rm", "--force", "--volumes", *self._containers, check=False)
        self("network", "rm", self.network, check=False)
        for volume in self._volumes:
            self("volume", "rm", "--force", volume, check=False)

    def __call__(self, *words: str, timeout: float = 60, check: bool = True) -> str:
        """The output of `docker WORDS`. Raises AssertionError with its stderr if it fails."""
        done = subprocess.run(
            [self.docker, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"docker {' '.join(words)}: {done.stderr}"
        return done.stdout

    def volume(self) -> str:
        """A new volume, that the user of the image may write to."""
        name = f"test-{self.token}-{len(self._volumes)}"
        self._volumes.append(name)
        self("volume", "create", name)
        return name

    def create(self, name: str, options: tuple[str, ...]) -> str:
        """A container that never runs, to copy files through."""
        container = f"{name}-{self.token}-{len(self._containers)}"
        self._containers.append(container)
        self("create", "--name", container, *options, self.image)
        return container

    def start(self, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Starts a container in the background, safe as in a cluster; `name` is its host name."""
        container = f"{name}-{self.token}"
        self._containers.append(container)
        settings = [word for one in _ENVIRONMENT for word in ("--env", one)]
        place = ["--network", self.network, "--network-alias", name, "--hostname", name]
        begin = ["run", "--detach", "--name", container, *place, *settings, *_SAFE, *options]
        self(*begin, self.image, *command)
        return container

    def wait(self, container: str, seconds: float) -> int:
        """The exit code. Raises AssertionError with the log when it does not come in time."""
        try:
            return int(self("wait", container, timeout=seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {seconds:g} s:\n{self.log(container)}") from None

    def log(self, container: str) -> str:
        """Both streams of a container, to now."""
        done = subprocess.run(
            [self.docker, "logs", container],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout

    def read(self, volume: str, path: str) -> str:
        """A file of a volume, read by the user of the image."""
        place = ("--volume", f"{volume}:/runs", "--entrypoint", "cat")
        return self("run", "--rm", *place, self.image, f"/runs/{path}")

    def says(self, container: str, text: str, seconds: float = 90) -> None:
        """Waits until the log has the text. Raises AssertionError with the log if it never does."""
        until(lambda: text in self.log(container), seconds, lambda: self.log(container))

    def inspect(self, container: str) -> dict:
        return dict(json.loads(self("inspect", container))[0])
