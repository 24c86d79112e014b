"""What a job is: plain data, checked before anything starts, from flags or from a TOML file."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from launcher.containers import Container, Kubernetes
from launcher.errors import SpecError

Backend = Literal["horovod", "mpi", "tf", "local"]
Binding = Literal["auto", "none", "cores", "numa"]
TargetName = Literal["local", "hosts", "compose", "kubernetes"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?")


def parse_bytes(amount: object) -> object:
    """`"2GiB"`, `"512M"` or a number of bytes, as a number of bytes."""
    if not isinstance(amount, str):
        return amount
    found = _AMOUNT.fullmatch(amount.strip())
    if found is None:
        raise ValueError('expected an amount of memory such as "2GiB" or "512M"')
    return int(float(found[1]) * _UNITS[found[2] or ""])


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(_Data):
    """A machine that ranks run on, and how many fit on it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]:@-]*[A-Za-z0-9\]]$")]
    slots: Annotated[int, Field(ge=1)] = 1


class Resources(_Data):
    """What each rank gets. Everything left out is chosen from the machine's cores and GPUs.

    `memory` is a limit in bytes on what the rank and its children hold together. `binding` ties
    ranks to cores: `auto` binds by NUMA node where there is more than one.
    """

    cpus: Annotated[int, Field(ge=1)] | None = None
    memory: Bytes | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    binding: Binding = "auto"


class RestartPolicy(_Data):
    """How often a failed job starts again, how long it waits, and which failures are worth it.

    The n-th wait is `backoff · 2ⁿ` seconds, at most `backoff_limit`, shortened at random by up to
    the share `jitter`. `exit_codes` None means every failure but bad configuration; a rank that a
    signal ends counts as 128 plus the signal's number.
    """

    max_restarts: Annotated[int, Field(ge=0)] = 3
    backoff: Annotated[float, Field(ge=0)] = 1.0
    backoff_limit: Annotated[float, Field(ge=0)] = 60.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.25
    exit_codes: tuple[Annotated[int, Field(ge=1, le=255)], ...] | None = None


class Metrics(_Data):
    """Where the job offers its Prometheus metrics.

    The launcher serves one page for the whole job on `port`, and on each host the rank with local
    rank N its own on `port + 1 + N`; `port` 0 takes free ones. With `rank_labels` the job's page
    keeps the ranks apart. `push` is a Pushgateway (HOST:PORT) that gets the page at the end.
    """

    port: Annotated[int, Field(ge=0, le=65000)] | None = None
    address: str = "127.0.0.1"
    rank_labels: bool = False
    push: str | None = None


class JobSpec(_Data):
    """One job. Times are in seconds; `ranks` is the world size.

    `pass_environment` names variables whose values are taken from the launcher's own environment at
    the start and never recorded: the place for secrets. `hang_timeout` 0 turns hang detection off.
    `exit_timeout` is how long ranks may say nothing once another has ended with 0; 0 for ever.
    `grace` is what peers get between SIGTERM and SIGKILL after a failure, `save_timeout` what all
    ranks get to save when the job is told to stop. `output` holds one directory per run. `target`
    None is hosts where there are any, else local; the others read `container` and `kubernetes`.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "job"
    ranks: Annotated[int, Field(ge=1, le=100_000)] = 1
    hosts: tuple[Host, ...] = ()
    ssh: Annotated[tuple[str, ...], Field(min_length=1)] = ("ssh",)
    backend: Backend = "local"
    rendezvous_port: Annotated[int, Field(ge=0, le=65535)] = 0
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    pass_environment: tuple[str, ...] = ()
    resources: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    hang_timeout: Annotated[float, Field(ge=0)] = 300.0
    exit_timeout: Annotated[float, Field(ge=0)] = 30.0
    silence_timeout: Annotated[float, Field(ge=2)] = 10.0
    grace: Annotated[float, Field(ge=0)] = 4.0
    save_timeout: Annotated[float, Field(ge=0)] = 30.0
    output: Path = Path("runs")
    directory: Path = Field(default_factory=Path.cwd)
    metrics: Metrics | None = None
    target: TargetName | None = None
    container: Container = Container()
    kubernetes: Kubernetes = Kubernetes()

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
        return JobSpec(**fields)
    except ValidationError as error:
        raise SpecError("\n".join(_explain(problem) for problem in error.errors())) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The fields in a TOML file, unchecked. Raises SpecError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is no TOML: {error}") from None


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
        if not name or not slots.isdigit():
            raise SpecError(f"hosts: expected NAME:SLOTS,NAME:SLOTS. Received: {text!r}")
        hosts.append({"name": name, "slots": int(slots)})
    return hosts


def read_hostfile(path: Path) -> list[dict[str, Any]]:
    """Lines of `NAME slots=N`, as mpirun and horovodrun read them. Raises SpecError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SpecError(f"hostfile {path}: {error.strerror}") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 else "1"
        if len(words) > 2 or not slots.isdigit():
            raise SpecError(f"hostfile {path}, line {number}: expected NAME slots=N: {line!r}")
        hosts.append({"name": words[0], "slots": int(slots)})
    return hosts


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    said = problem["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such field of a job"
    if not place:
        return said
    if problem["type"] == "missing":
        return f"{place}: {said}"
    return f"{place}: {said}. Received: {problem['input']!r}"
