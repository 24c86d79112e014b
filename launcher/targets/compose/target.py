"""The target `--target compose`: starts the containers of a job, and removes them."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import yaml

from launcher.errors import LauncherError, MissingToolError, UnknownRunError, UsageError
from launcher.placement.slots import require_cores
from launcher.spec import JobSpec
from launcher.supervision.run import View
from launcher.supervision.stop import StopRequests
from launcher.targets.base import JobStatus, LogQuery, Target, is_of_rank
from launcher.targets.compose import containers, services
from launcher.targets.compose.services import LEADER

_CHECK_SECONDS = 20.0
_WAIT_SECONDS = 0.2
_POLL_SECONDS = 1.0


class ComposeTarget(Target):
    """The job's exit code is that of its leader; the other containers end with it."""

    name = "compose"

    def check(self, spec: JobSpec) -> None:
        services.check(spec)
        require_cores(spec)
        if shutil.which("docker") is None:
            raise MissingToolError("docker is not installed; apt-get install docker.io")
        _compose_command()
        image = services.image(spec)
        if not _answers("docker", "info"):
            raise LauncherError(
                "Docker Engine does not answer; start it: systemctl start docker, or dockerd"
            )
        if not _answers("docker", "image", "inspect", image):
            stage = "gpu" if spec.resources.gpus else "cpu"
            raise LauncherError(
                f"container.image: Docker Engine has no {image!r}; build it: "
                f"docker build --target {stage} -t {image} ."
            )

    def render(self, spec: JobSpec) -> str:
        content = services.compose_file(spec)
        return yaml.safe_dump(content, sort_keys=False, width=100).rstrip("\n")

    def run(self, spec: JobSpec, stop: StopRequests, view: Callable[[], View]) -> int:
        """Shows the leader's output, and removes all containers at the end.

        A stop request lets the ranks save. The volume with the runs is kept.
        """
        self.check(spec)
        self._compose(spec, "up", "--detach", "--no-build")
        try:
            leader = self._compose(spec, "ps", "--quiet", LEADER).strip()
            shown = subprocess.Popen(["docker", "logs", "--follow", leader])
            waiting = subprocess.Popen(["docker", "wait", leader], stdout=subprocess.PIPE)
            while waiting.poll() is None:
                if stop.count:
                    self._compose(spec, "stop" if stop.count == 1 else "kill")
                    waiting.wait(_CHECK_SECONDS)
                    break
                _pause(waiting)
            shown.wait(_CHECK_SECONDS)
            assert waiting.stdout is not None
            code = waiting.stdout.read().strip()
            return stop.exit_code if stop.count else int(code or 1)
        finally:
            self._compose(spec, "down", "--remove-orphans")

    def submit(self, spec: JobSpec) -> tuple[str, str]:
        self.check(spec)
        self._refuse_taken(spec.name)
        self._compose(spec, "up", "--detach", "--no-build")
        job = containers.find(spec.name, LEADER)
        return spec.name, f"{spec.name} is running in {len(job.containers)} containers"

    def describe(self, name: str | None) -> JobStatus:
        return containers.find(self._name(name), LEADER)

    def follow(self, name: str | None) -> Iterator[JobStatus]:
        name = self._name(name)
        while True:
            yield (job := containers.find(name, LEADER))
            if job.ended:
                return
            time.sleep(_POLL_SECONDS)

    def logs(self, name: str | None, query: LogQuery) -> Iterator[str]:
        """The log of the leader, which has the output of all ranks, or of one worker."""
        query.refuse("attempt", "expected none: a container has one log for all attempts")
        job = containers.find(self._name(name), LEADER)
        wanted = [one for one in job.containers if one.service != LEADER]
        wanted = [one for one in wanted if one.number == query.worker] if query.worker else []
        container = job.leader if not query.worker else next(iter(wanted), None)
        if container is None:
            raise UsageError(
                f"--worker: expected a container of job {job.name!r}. Received: {query.worker}"
            )
        words = ["docker", "logs", *(["--follow"] if query.follow else []), container.id]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as shown:
            assert shown.stdout is not None
            try:
                for line in shown.stdout:
                    if query.rank is None or is_of_rank(line, query.rank):
                        yield line.rstrip("\n")
            finally:
                shown.terminate()

    def cancel(self, name: str | None, now: bool) -> str:
        if name is None:
            raise UsageError(f"expected the name of the job; see: launcher list{self.flags()}")
        job = containers.find(name, LEADER)
        if not job.ended:
            containers.docker("kill" if now else "stop", *(one.id for one in _running(job)))
        containers.remove(name)
        return f"{name}: {'killed' if now else 'its ranks have saved'}; its containers are removed"

    def list(self) -> list[JobStatus]:
        return [*containers.jobs(LEADER)]

    def no_jobs_message(self) -> str:
        return "no jobs in containers; start one: launcher submit --target compose -- COMMAND"

    def _name(self, name: str | None) -> str:
        if name is not None:
            return name
        found = containers.jobs(LEADER)
        if not found:
            raise UsageError(self.no_jobs_message())
        return found[-1].name

    def _refuse_taken(self, name: str) -> None:
        try:
            job = containers.find(name, LEADER)
        except UnknownRunError:
            return
        raise UsageError(
            f"name: a job {name!r} has containers already and is {job.state}; "
            f"launcher cancel {name}{self.flags()}, or choose another --name"
        )

    def _compose(self, spec: JobSpec, *words: str) -> str:
        """The output of Compose for the job. Raises LauncherError if it fails."""
        command = _compose_command()
        done = subprocess.run(
            [*command, "--project-name", spec.name, "--file", "-", *words],
            input=self.render(spec),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise LauncherError(f"{' '.join(command)} {words[0]}: {last[-1]}")
        return done.stdout


def _running(job: containers.ContainerJob) -> list[containers.Container]:
    """The containers to stop, the leader first: it lets all ranks save."""
    running = [one for one in job.containers if one.state not in {"exited", "dead"}]
    return sorted(running, key=lambda one: one.service != LEADER)


def _compose_command() -> Sequence[str]:
    if _answers("docker", "compose", "version"):
        return ("docker", "compose")
    if shutil.which("docker-compose") is not None:
        return ("docker-compose",)
    raise MissingToolError(
        "no Docker Compose; apt-get install docker-compose-plugin, or docker-compose"
    )


def _answers(*command: str) -> bool:
    """Whether a command succeeds in time."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _pause(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        return
