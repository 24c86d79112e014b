"""What a target is: a place where jobs run, with the whole life of a job behind one class.

Rendering is pure: it starts nothing and opens nothing. Targets whose ranks the launcher watches
itself (local, hosts) subclass SupervisedTarget; the others hand the job to another system.
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
    """Which jobs of a target are meant: those recorded under `output`, or those in a `namespace` of
    the cluster that `context` names."""

    output: Path = Path("runs")
    namespace: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        return cls(spec.output, spec.kubernetes.namespace, spec.kubernetes.context)

    def flags(self, *names: str) -> str:
        """Those of the flags that a verb must be given to look at the same jobs."""
        given = {name: getattr(self, name) for name in names}
        default = Location()
        return "".join(
            f" --{name} {value}" for name, value in given.items() if value != getattr(default, name)
        )


@dataclass(frozen=True)
class LogQuery:
    """Which lines of a job's log are wanted; None for what the target shows by itself.

    `follow` stays until the job has ended. `worker` is the number of a container or pod.
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
    """One look at a job."""

    name: str
    state: str

    @property
    @abstractmethod
    def ended(self) -> bool: ...

    @property
    @abstractmethod
    def exit_code(self) -> int:
        """As `launcher run` would end; 0 while the job has not ended."""

    @abstractmethod
    def summary(self) -> str:
        """One line that changes when the job's state does."""

    @abstractmethod
    def picture(self) -> RenderableType:
        """All there is to see, for a terminal."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """All there is to see, for programs."""

    @abstractmethod
    def row(self) -> Mapping[str, str]:
        """The job in a list: what stands under each heading."""

    def row_as_json(self) -> dict[str, Any]:
        """The job in a list, for programs."""
        return self.as_json()


class Target(ABC):
    """A place where jobs run. Every method raises LauncherError when that place fails.

    A job is found by its name; None means the newest one, where the target can tell.
    """

    name: ClassVar[str]

    def __init__(self, where: Location) -> None:
        self.where = where

    def flags(self) -> str:
        """What `launcher status` and the like must be given to find the jobs of this target."""
        return f" --target {self.name}"

    def default_backend(self, ranks: int) -> str:
        """The backend of a job that names none. What is installed here says nothing elsewhere."""
        return "horovod"

    @abstractmethod
    def check(self, spec: JobSpec) -> None:
        """Looks, within seconds, whether the job can start. Raises LauncherError if not."""

    @abstractmethod
    def render(self, spec: JobSpec) -> str:
        """What would be run, as commands or manifests to read or to apply by hand."""

    def run(self, spec: JobSpec, stop: StopRequests, view: Callable[[], View]) -> int:
        """Runs the job to its end in the foreground; returns its exit code.

        Where the launcher sees events of the job, `view` makes what shows them.
        """
        raise UsageError(
            f"--target: {self.name} runs jobs in the background only; use: "
            f"launcher submit --wait --target {self.name}"
        )

    @abstractmethod
    def submit(self, spec: JobSpec) -> tuple[str, str]:
        """Starts the job in the background. Returns its name, and a line on what was done."""

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
        """Stops the job, whose ranks save first unless `now`. Returns a line on what was done."""

    @abstractmethod
    def list(self) -> list[JobStatus]:
        """All jobs, the newest last."""

    @abstractmethod
    def nothing(self) -> str:
        """What is said where there are no jobs."""


def is_of_rank(line: str, rank: int) -> bool:
    """Whether a launcher has marked the line as that rank's: `[ 1] text`."""
    label, bracket, _ = line.removeprefix("[").partition("]")
    return bool(bracket) and label.split()[:1] == [str(rank)]
