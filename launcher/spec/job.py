"""What a job is: plain data, checked before anything starts, from flags or from a TOML file."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from launcher.errors import SpecError
from launcher.spec.containers import Container, Kubernetes
from launcher.spec.fields import Bytes, Data, Directory, Seconds, Share, Text, VariableName, Whole
from launcher.spec.messages import complaints

Backend = Literal["horovod", "mpi", "tf", "local"]
Binding = Literal["auto", "none", "cores", "numa"]

_MOST_RANKS = 100_000
_MOST_CORES = 4096


class Host(Data):
    """A machine that ranks run on, and how many fit on it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]:@-]*[A-Za-z0-9\]]$")]
    slots: Annotated[Whole, Field(ge=1, le=_MOST_RANKS)] = 1


class Resources(Data):
    """What each rank gets. Everything left out is chosen from the machine's cores and GPUs.

    `memory` is a limit in bytes on what the rank and its children hold together. `binding` ties
    ranks to cores: `auto` binds by NUMA node where there is more than one.
    """

    cpus: Annotated[Whole, Field(ge=1, le=_MOST_CORES)] | None = None
    memory: Bytes | None = None
    gpus: Annotated[Whole, Field(ge=0, le=1024)] | None = None
    threads: Annotated[Whole, Field(ge=1, le=_MOST_CORES)] | None = None
    binding: Binding = "auto"


class RestartPolicy(Data):
    """How often a failed job starts again, how long it waits, and which failures are worth it.

    The n-th wait is `backoff · 2ⁿ` seconds, at most `backoff_limit`, shortened at random by up to
    the share `jitter`. `exit_codes` None means every failure but bad configuration; a rank that a
    signal ends counts as 128 plus the signal's number.
    """

    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = 3
    backoff: Seconds = 1.0
    backoff_limit: Seconds = 60.0
    jitter: Share = 0.25
    exit_codes: tuple[Annotated[Whole, Field(ge=1, le=255)], ...] | None = None


class Metrics(Data):
    """Where the job offers its Prometheus metrics.

    The launcher serves one page for the whole job on `port`, and on each host the rank with local
    rank N its own on `port + 1 + N`; `port` 0 takes free ones. With `rank_labels` the job's page
    keeps the ranks apart. `push` is a Pushgateway (HOST:PORT) that gets the page at the end.
    """

    port: Annotated[Whole, Field(ge=0, le=65000)] | None = None
    address: Text = "127.0.0.1"
    rank_labels: Annotated[bool, Field(strict=True)] = False
    push: Text | None = None


class JobSpec(Data):
    """One job. Times are in seconds; `ranks` is the world size, and `oversubscribe` the leave to
    start far more of them than this machine has cores.

    `pass_environment` names variables whose values are taken from the launcher's own environment at
    the start and never recorded: the place for secrets. `hang_timeout` 0 turns hang detection off.
    `exit_timeout` is how long ranks may say nothing once another has ended with 0; 0 for ever.
    `grace` is what peers get between SIGTERM and SIGKILL after a failure, `save_timeout` what all
    ranks get to save when the job is told to stop. `output` holds one directory per run. `target`
    None is hosts where there are any, else local; the others read `container` and `kubernetes`.
    """

    command: tuple[Text, ...]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "job"
    ranks: Annotated[Whole, Field(ge=1, le=_MOST_RANKS)] = 1
    oversubscribe: Annotated[bool, Field(strict=True)] = False
    hosts: tuple[Host, ...] = ()
    ssh: tuple[Text, ...] = ("ssh",)
    backend: Backend = "local"
    rendezvous_port: Annotated[Whole, Field(ge=0, le=65535)] = 0
    environment: dict[VariableName, Text] = Field(default_factory=dict)
    pass_environment: tuple[VariableName, ...] = ()
    resources: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    hang_timeout: Seconds = 300.0
    exit_timeout: Seconds = 30.0
    silence_timeout: Annotated[Seconds, Field(ge=2)] = 10.0
    grace: Seconds = 4.0
    save_timeout: Seconds = 30.0
    output: Directory = Path("runs")
    directory: Directory = Field(default_factory=Path.cwd)
    metrics: Metrics | None = None
    target: Text | None = None
    container: Container = Container()
    kubernetes: Kubernetes = Kubernetes()

    @field_validator("command", "ssh")
    @classmethod
    def _names_a_program(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words or not words[0]:
            raise ValueError("expected a program and its arguments")
        return words

    @model_validator(mode="after")
    def _fits(self) -> "JobSpec":
        slots = sum(host.slots for host in self.hosts)
        if self.hosts and slots < self.ranks:
            raise ValueError(f"ranks: expected at most the {slots} slots of the hosts")
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names):
            raise ValueError("hosts: expected each host once, with all its slots")
        return self


def build_spec(fields: dict[str, Any]) -> JobSpec:
    """Checks the fields of a job. Raises SpecError with one line per wrong field."""
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        raise SpecError(complaints(error, JobSpec)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The fields in a TOML file, unchecked. Raises SpecError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also text that is no UTF-8, and numbers without end
        raise SpecError(f"{path} is no TOML: {error}") from None
    except RecursionError:
        raise SpecError(f"{path} is no TOML of a job: too many brackets in brackets") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over` laid on top, tables field by field."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def parse_hosts(text: str) -> list[dict[str, Any]]:
    """`h1:4,h2` as fields of hosts; a host without a number has one slot. Raises SpecError."""
    hosts = []
    for entry in text.split(","):
        name, colon, slots = entry.strip().rpartition(":")
        if not colon:
            name, slots = entry.strip(), "1"
        if not name or not _is_count(slots):
            raise SpecError(f"hosts: expected NAME:SLOTS,NAME:SLOTS. Received: {text!r}")
        hosts.append({"name": name, "slots": int(slots)})
    return hosts


def read_hostfile(path: Path) -> list[dict[str, Any]]:
    """Lines of `NAME slots=N`, as mpirun and horovodrun read them. Raises SpecError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SpecError(f"hostfile {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(
            f"hostfile {path}: expected lines of NAME slots=N, and not binary data"
        ) from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 else "1"
        if len(words) > 2 or not _is_count(slots):
            raise SpecError(f"hostfile {path}, line {number}: expected NAME slots=N: {line!r}")
        hosts.append({"name": words[0], "slots": int(slots)})
    return hosts


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
