"""The specification of a job, from flags or a TOML file, checked before anything starts."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from launcher.errors import SpecError
from launcher.options import option
from launcher.spec import flag_values
from launcher.spec.containers import Container, Kubernetes
from launcher.spec.fields import Bytes, Data, Directory, Seconds, Share, Text, VariableName, Whole
from launcher.spec.messages import describe_errors
from launcher.spec.slurm import Slurm
from launcher.spec.targets import TARGETS

# `auto` is for jobs in containers, which choose the fastest backend of their image.
Backend = Literal["horovod", "mpi", "tf", "local", "auto"]
Binding = Literal["auto", "none", "cores", "numa"]

_MOST_RANKS = 100_000
_MOST_CORES = 4096

# The panels of the help.
_WHERE, _RANK, _FAILURE = "Where", "Each rank", "When it fails"
_METRICS = "Metrics"


class Host(Data):
    """A machine, and the number of ranks it has slots for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]:@-]*[A-Za-z0-9\]]$")]
    slots: Annotated[Whole, Field(ge=1, le=_MOST_RANKS)] = 1


class Resources(Data):
    """The resources of each rank. Defaults depend on the machine's cores and GPUs.

    `memory` limits the memory of the rank and its child processes in bytes. `binding` binds
    ranks to cores: `auto` binds by NUMA node where there is more than one.
    """

    cpus: Annotated[Whole, Field(ge=1, le=_MOST_CORES)] | None = option(
        None, "Cores per rank, bound.", _RANK, shown="not bound"
    )
    memory: Bytes | None = option(
        None, "Memory limit, e.g. 8GiB.", _RANK, shown="none", metavar="size"
    )
    gpus: Annotated[Whole, Field(ge=0, le=1024)] | None = option(
        None, "GPUs each rank sees.", _RANK, shown="all"
    )
    threads: Annotated[Whole, Field(ge=1, le=_MOST_CORES)] | None = option(
        None, "Threads per rank.", _RANK, shown="cores / ranks"
    )
    binding: Binding = option("auto", "auto, none, cores or numa.", _RANK)


class RestartPolicy(Data):
    """How often a failed job restarts, how long it waits, and after which failures it restarts.

    The n-th wait is `backoff · 2ⁿ` seconds, at most `backoff_limit`, shortened at random by up to
    the share `jitter`. `exit_codes` None means every failure but bad configuration; a rank that a
    signal ends counts as 128 plus the signal's number.
    """

    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = option(3, "0 for never.", _FAILURE)
    backoff: Seconds = option(1.0, "Seconds before the first restart, then doubled.", _FAILURE)
    backoff_limit: Seconds = 60.0
    jitter: Share = 0.25
    exit_codes: tuple[Annotated[Whole, Field(ge=1, le=255)], ...] | None = option(
        None,
        "Restart only after these exit codes: 1,137.",
        _FAILURE,
        "--restart-codes",
        shown="all but 2, 126, 127",
        parse=flag_values.codes,
        metavar="codes",
    )


class Metrics(Data):
    """The Prometheus metrics of the job.

    The launcher serves one page for the whole job on `port`, and on each host the rank with local
    rank N its own on `port + 1 + N`; `port` 0 chooses free ones. With `rank_labels` the job's page
    has one series per rank. `push` is a Pushgateway (HOST:PORT) that receives the page at the end.
    """

    port: Annotated[Whole, Field(ge=0, le=65000)] | None = option(
        None,
        "Port of the job's metrics; the ranks use the next ones. 0 chooses free ports.",
        _METRICS,
        "--metrics-port",
    )
    address: Text = option("127.0.0.1", "Address to serve them on.", _METRICS, "--metrics-host")
    rank_labels: Annotated[bool, Field(strict=True)] = option(
        False, "Do not aggregate over ranks.", _METRICS, "--metrics-rank-labels"
    )
    push: Text | None = option(
        None,
        "A Pushgateway that receives them at the end.",
        _METRICS,
        "--metrics-push",
        metavar="host:port",
    )


class JobSpec(Data):
    """One job. Times are in seconds; `ranks` is the world size; `oversubscribe` permits far more
    ranks than this machine has cores.

    `pass_environment` names variables whose values are taken from the launcher's own environment
    and never recorded, for secrets. `hang_timeout` 0 turns hang detection off. `exit_timeout` is
    how long ranks may show no activity once another has exited with 0; 0 for no limit. `grace` is
    the time between SIGTERM and SIGKILL for peers after a failure, `save_timeout` that for all
    ranks when the job is stopped. `output` contains one directory per run. `target` None is hosts
    if there are any, else local; the other targets read `container`, `kubernetes` and `slurm`.
    """

    command: tuple[Text, ...]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = option(
        "job", "Name of the job, and prefix of the run's id.", None
    )
    ranks: Annotated[Whole, Field(ge=1, le=_MOST_RANKS)] = option(
        1, "World size.", None, "-np", "--ranks", shown="1 or slots"
    )
    oversubscribe: Annotated[bool, Field(strict=True)] = option(
        False, "Permit more than eight ranks per core.", _WHERE
    )
    hosts: tuple[Host, ...] = option(
        (), "Hosts and their slots: h1:4,h2:4.", _WHERE, parse=flag_values.hosts, metavar="hosts"
    )
    ssh: tuple[Text, ...] = option(
        ("ssh",),
        'The ssh to use, e.g. "ssh -p 2222".',
        _WHERE,
        shown="ssh",
        parse=flag_values.words,
        metavar="command",
    )
    backend: Backend = option(
        "local", "horovod, mpi, tf or local.", _WHERE, shown="the fastest one installed"
    )
    backend_reason: str = ""
    rendezvous_port: Annotated[Whole, Field(ge=0, le=65535)] = option(
        0, "Port of Horovod's rendezvous server.", _WHERE, shown="a free one"
    )
    environment: dict[VariableName, Text] = Field(default_factory=dict)
    pass_environment: tuple[VariableName, ...] = ()
    resources: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    hang_timeout: Seconds = option(300.0, "Seconds without a finished step; 0 for never.", _FAILURE)
    exit_timeout: Seconds = option(
        30.0,
        "Seconds without output or heartbeat once a rank has exited with 0; 0 for no limit.",
        _FAILURE,
    )
    silence_timeout: Annotated[Seconds, Field(ge=2)] = option(
        10.0, "Seconds without a report from a host.", _FAILURE
    )
    grace: Seconds = option(4.0, "Seconds from SIGTERM to SIGKILL.", _FAILURE)
    save_timeout: Seconds = option(30.0, "Seconds to save after a stop request.", _FAILURE)
    output: Directory = option(
        Path("runs"),
        "Contains one directory per run.",
        None,
        "--output",
        "-o",
        variable="LAUNCHER_OUTPUT",
    )
    directory: Directory = Field(default_factory=Path.cwd)
    metrics: Metrics | None = None
    target: Text | None = option(
        None,
        f"{', '.join(TARGETS)}.",
        _WHERE,
        shown="hosts if there are any, else local",
    )
    container: Container = Container()
    kubernetes: Kubernetes = Kubernetes()
    slurm: Slurm = Slurm()

    @field_validator("target")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in TARGETS:
            raise ValueError(f"expected one of {', '.join(TARGETS)}")
        return name

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
        raise SpecError(describe_errors(error, JobSpec)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The fields in a TOML file, unchecked. Raises SpecError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also for text that is not UTF-8, and for too many digits
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SpecError(f"{path} is not valid TOML: brackets are nested too deeply") from None


def read_json(text: str) -> dict[str, Any]:
    """The fields in a JSON object, unchecked. Raises SpecError for anything else."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise SpecError(f"--job: expected JSON ({error}): {text!r}") from None
    if not isinstance(fields, dict):
        raise SpecError(f"--job: expected a JSON object. Received: {text!r}")
    return fields


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by the fields of `over`, recursively in tables."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged
