"""The interface of a target, on which jobs run: one class with all operations on a job.

Rendering is pure: it starts nothing and opens nothing. Targets whose ranks the launcher supervises
itself (local, hosts) subclass SupervisedTarget; the others submit the job to another system.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.console import RenderableType

from launcher.errors import UsageError
from launcher.spec import JobSpec
from launcher.supervision.run import View
from launcher.supervision.stop import StopRequests


@dataclass(frozen=True)
class Location:
    """Where the jobs of a target are: recorded in `output`, or in a `namespace` of the cluster
    `context`."""

    output: Path = Path("runs")
    namespace: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        return cls(spec.output, spec.kubernetes.namespace, spec.kubernetes.context)

    def flags(self, *names: str) -> str:
        """The flags, among those named, with which another verb finds the same jobs."""
        given = {name: getattr(self, name) for name in names}
        default = Location()
        return "".join(
            f" --{name} {value}" for name, value in given.items() if value != getattr(default, name)
        )


@dataclass(frozen=True)
class LogQuery:
    """Which lines of a job's log to read; None for the target's default.

    With `follow`, until the job has ended. `worker` is the number of a container or pod.
    """

    rank: int | None = None
    attempt: int | None = None
    worker: int | None = None
    follow: bool = False

    def refuse(self, name: str, reason: str) -> None:
        """Raises UsageError if the flag was given."""
        if getattr(self, name) is not None:
            raise UsageError(f"--{name}: {reason}. Received: {getattr(self, name)}")


class JobStatus(ABC):
    """The status of a job at one time."""

    name: str
    state: str

    @property
    @abstractmethod
    def ended(self) -> bool: ...

    @property
    @abstractmethod
    def exit_code(self) -> int:
        """The exit code that `launcher run` would have; 0 while the job has not ended."""

    @abstractmethod
    def summary(self) -> str:
        """One line that changes when the job's state does."""

    @abstractmethod
    def renderable(self) -> RenderableType:
        """The full status, for a terminal."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """The full status, for programs."""

    @abstractmethod
    def row(self) -> Mapping[str, str]:
        """The job in a list: values by column."""

    def row_as_json(self) -> dict[str, Any]:
        """The job in a list, for programs."""
        return self.as_json()


class Target(ABC):
    """A system that runs jobs. Every method raises LauncherError when that system fails.

    A job is found by its name; None means the newest one, if the target records that.
    """

    name: ClassVar[str]

    def __init__(self, where: Location) -> None:
        self.where = where

    def flags(self) -> str:
        """The flags with which `launcher status` and the like find the jobs of this target."""
        return f" --target {self.name}"

    def default_backend(self, ranks: int) -> tuple[str, str]:
        """The backend of a job that names none, and why."""
        return ("auto", "") if ranks > 1 else ("local", "a single rank")

    @abstractmethod
    def check(self, spec: JobSpec) -> None:
        """Checks, within seconds, that the job can start. Raises LauncherError if not."""

    @abstractmethod
    def render(self, spec: JobSpec) -> str:
        """What would run, as commands or manifests to read or to apply by hand."""

    def run(self, spec: JobSpec, stop: StopRequests, view: Callable[[], View]) -> int:
        """Runs the job to its end in the foreground; returns its exit code.

        If the launcher receives events of the job, `view` creates the observer that shows them.
        """
        raise UsageError(
            f"--target: {self.name} runs jobs in the background only; use: "
            f"launcher submit --wait --target {self.name}"
        )

    @abstractmethod
    def submit(self, spec: JobSpec) -> tuple[str, str]:
        """Starts the job in the background. Returns its name, and a message on what was done."""

    @abstractmethod
    def describe(self, name: str | None) -> JobStatus:
        """The job as it is now. Raises UnknownRunError."""

    @abstractmethod
    def follow(self, name: str | None) -> Iterator[JobStatus]:
        """The job as it is now, and again as it changes, until it has ended."""

    @abstractmethod
    def logs(self, name: str | None, query: LogQuery) -> Iterator[str]:
        """Lines of what the job has printed."""

    @abstractmethod
    def cancel(self, name: str | None, now: bool) -> str:
        """Stops the job; its ranks save first unless `now`. Returns a message on what was done."""

    @abstractmethod
    def list(self) -> list[JobStatus]:
        """All jobs, the newest last."""

    @abstractmethod
    def no_jobs_message(self) -> str:
        """The message if there are no jobs."""


def is_of_rank(line: str, rank: int) -> bool:
    """Whether the line has that rank's prefix: `[ 1] text`."""
    label, bracket, _ = line.removeprefix("[").partition("]")
    return bool(bracket) and label.split()[:1] == [str(rank)]
