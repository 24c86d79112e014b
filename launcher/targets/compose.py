"""The containers of one Docker engine, through Docker Compose: the first leads, the others join.

`docker-compose.yml` in the repository is the same job for people who would rather not use this.
"""

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from launcher.errors import LauncherError, MissingToolError, SpecError
from launcher.placement.slots import require_cores
from launcher.spec import JobSpec
from launcher.supervision.stop import StopRequests
from launcher.targets.base import Target
from launcher.targets.join_command import join_arguments

_CHECK_SECONDS = 20.0
_TURN_SECONDS = 0.2
_LEAVING_SECONDS = 15


class ComposeTarget(Target):
    """The job's exit code is that of the container that leads; the others end with it."""

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        slots = spec.container.slots
        if spec.ranks % slots:
            raise SpecError(f"ranks: expected a multiple of the {slots} slots: {spec.ranks}")
        if spec.backend not in {"horovod", "tf"} and spec.ranks > slots:
            raise SpecError(
                f"backend: expected horovod or tf between containers. Received: {spec.backend}"
            )
        self.image = spec.container.image_for(ssh=False, gpus=bool(spec.resources.gpus))

    def check(self) -> None:
        require_cores(self.spec)
        if shutil.which("docker") is None:
            raise MissingToolError("docker is not installed; apt-get install docker.io")
        self._compose()
        if _answer("docker", "info") is None:
            raise LauncherError(
                "the Docker engine does not answer; start it: dockerd, or systemctl"
            )
        if _answer("docker", "image", "inspect", self.image) is None:
            target = "gpu" if self.spec.resources.gpus else "cpu"
            raise LauncherError(
                f"container.image: the engine has no {self.image!r}; make ours: "
                f"docker build --target {target} -t {self.image} ."
            )

    def render(self) -> str:
        workers = self.spec.ranks // self.spec.container.slots - 1
        services = {"head": self._service("head")}
        if workers:
            services["worker"] = {**self._service("worker"), "scale": workers}
        content = {
            "services": services,
            "networks": {"job": {"internal": True}},
            "volumes": {"runs": {}},
        }
        return yaml.safe_dump(content, sort_keys=False, width=100).rstrip("\n")

    def run(self, stop: StopRequests) -> int:
        """Starts the containers, shows what the first says, and takes them away at the end.

        A stop request lets the ranks save. The volume with the runs stays.
        """
        compose = [*self._compose(), "--project-name", self.spec.name, "--file", "-"]
        self._call(compose, "up", "--detach", "--no-build")
        try:
            container = self._call(compose, "ps", "--quiet", "head").strip()
            shown = subprocess.Popen(["docker", "logs", "--follow", container])
            waiting = subprocess.Popen(["docker", "wait", container], stdout=subprocess.PIPE)
            while waiting.poll() is None:
                if stop.count:
                    self._call(compose, "stop" if stop.count == 1 else "kill")
                    waiting.wait(_CHECK_SECONDS)
                    break
                _pause(waiting)
            shown.wait(_CHECK_SECONDS)
            assert waiting.stdout is not None
            code = waiting.stdout.read().strip()
            return stop.exit_code if stop.count else int(code or 1)
        finally:
            self._call(compose, "down", "--remove-orphans")

    def _service(self, role: str) -> dict[str, Any]:
        spec = self.spec
        service: dict[str, Any] = {
            "image": self.image,
            "command": join_arguments(spec, role),
            "networks": ["job"],
            "volumes": [f"runs:{spec.container.output}"],
            "tmpfs": ["/tmp"],
            "shm_size": _docker_size(spec.container.shared_memory),
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "stop_grace_period": f"{int(spec.save_timeout + spec.grace) + _LEAVING_SECONDS}s",
        }
        variables = {name: _literal(value) for name, value in sorted(spec.environment.items())}
        # Without a value Compose takes it from the caller's environment; nothing is written down.
        names = [*(f"{name}={value}" for name, value in variables.items()), *spec.pass_environment]
        if names:
            service["environment"] = names
        service["command"] = [_literal(word) for word in service["command"]]
        if spec.resources.memory:
            service["mem_limit"] = spec.resources.memory * spec.container.slots
        if spec.resources.cpus:
            service["cpus"] = spec.resources.cpus * spec.container.slots
        if spec.resources.gpus:
            count = spec.resources.gpus * spec.container.slots
            device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
        return service

    def _compose(self) -> list[str]:
        if _answer("docker", "compose", "version") is not None:
            return ["docker", "compose"]
        if shutil.which("docker-compose") is not None:
            return ["docker-compose"]
        raise MissingToolError(
            "no Docker Compose; apt-get install docker-compose-plugin, or docker-compose"
        )

    def _call(self, compose: Sequence[str], *words: str) -> str:
        done = subprocess.run(
            [*compose, *words],
            input=self.render(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise LauncherError(f"{' '.join(compose[:2])} {words[0]}: {last[-1]}")
        return done.stdout


def _answer(*command: str) -> str | None:
    """What a command prints, or None if it fails or does not come back."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _pause(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_TURN_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _literal(text: str) -> str:
    return text.replace("$", "$$")


def _docker_size(quantity: str) -> str:
    """A Kubernetes quantity in the words of Docker, whose units are powers of two."""
    return quantity.removesuffix("i").lower() if quantity.endswith("i") else quantity.lower()
