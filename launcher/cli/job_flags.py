"""The flags that describe a job, shared by run, submit and render."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.container_flags import container_fields
from launcher.cli.flag_values import codes_of, hosts_of, words_of
from launcher.errors import UsageError
from launcher.spec import JobSpec, build_spec, merge, read_toml
from launcher.targets import target_for

_WHERE = {"rich_help_panel": "Where"}
_RANK = {"rich_help_panel": "Each rank"}
_FAILURE = {"rich_help_panel": "When it fails"}
_METRICS = {"rich_help_panel": "Metrics"}


def spec_from_flags(
    command: Annotated[
        list[str] | None, typer.Argument(help="The program of a rank, after `--`.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("-np", "--ranks", help="World size.", show_default="1 or slots")
    ] = None,
    oversubscribe: Annotated[
        bool | None,
        typer.Option(
            "--oversubscribe", help="Start more ranks than eight a core all the same.", **_WHERE
        ),
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="Hosts and their slots: h1:4,h2:4.", **_WHERE)
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Lines of `NAME slots=N`.", **_WHERE)
    ] = None,
    ssh: Annotated[
        str | None,
        typer.Option(help='The ssh to use, e.g. "ssh -p 2222".', show_default="ssh", **_WHERE),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="horovod, mpi, tf or local.", show_default="the first installed", **_WHERE
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with the fields of the job; flags win.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Begins the run's id.", show_default="job")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            envvar="LAUNCHER_OUTPUT",
            help="Holds one directory per run.",
            show_default="runs",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, or NAME to pass a secret on unrecorded. Repeatable."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help="Cores per rank, bound.", show_default="not bound", **_RANK)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads per rank.", show_default="cores / ranks", **_RANK),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory limit, e.g. 8GiB.", show_default="none", **_RANK)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs each rank sees.", show_default="all", **_RANK)
    ] = None,
    binding: Annotated[
        str | None,
        typer.Option(help="auto, none, cores or numa.", show_default="auto", **_RANK),
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(help="0 for never.", show_default="3", **_FAILURE),
    ] = None,
    backoff: Annotated[
        float | None,
        typer.Option(
            help="Seconds before the first restart, then doubled.", show_default="1", **_FAILURE
        ),
    ] = None,
    restart_codes: Annotated[
        str | None,
        typer.Option(
            help="Exit codes worth a restart: 1,137.",
            show_default="all but 2, 126, 127",
            **_FAILURE,
        ),
    ] = None,
    hang_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds without a finished step; 0 for never.", show_default="300", **_FAILURE
        ),
    ] = None,
    exit_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds without a word once a rank has ended with 0; 0 for ever.",
            show_default="30",
            **_FAILURE,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds from SIGTERM to SIGKILL.", show_default="4", **_FAILURE),
    ] = None,
    save_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds to save when told to stop.", show_default="30", **_FAILURE),
    ] = None,
    silence_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds without a word from a host.", show_default="10", **_FAILURE),
    ] = None,
    rendezvous_port: Annotated[
        int | None,
        typer.Option(help="A fixed port.", show_default="a free one", **_WHERE),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Serve metrics of the job here, of ranks on the ports after it; 0: free ones.",
            **_METRICS,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(help="Address to serve them on.", show_default="127.0.0.1", **_METRICS),
    ] = None,
    metrics_rank_labels: Annotated[
        bool | None,
        typer.Option(
            "--metrics-rank-labels", help="Keep ranks apart on the job's page.", **_METRICS
        ),
    ] = None,
    metrics_push: Annotated[
        str | None,
        typer.Option(
            help="A Pushgateway that gets them at the end.", metavar="HOST:PORT", **_METRICS
        ),
    ] = None,
    **containers: Any,
) -> JobSpec:
    """The job: the TOML file, the flags over it, then what was left open."""
    fields: dict[str, Any] = read_toml(config) if config else {}
    flags: dict[str, Any] = {
        "command": command,
        "ranks": ranks,
        "oversubscribe": oversubscribe,
        "hosts": hosts_of(hosts, hostfile),
        "ssh": words_of(ssh),
        "backend": backend,
        "name": name,
        "output": output,
        "rendezvous_port": rendezvous_port,
        "hang_timeout": hang_timeout,
        "exit_timeout": exit_timeout,
        "grace": grace,
        "save_timeout": save_timeout,
        "silence_timeout": silence_timeout,
        "metrics": {
            "port": metrics_port,
            "address": metrics_host,
            "rank_labels": metrics_rank_labels,
            "push": metrics_push,
        },
        "resources": {
            "cpus": cpus,
            "threads": threads,
            "memory": memory,
            "gpus": gpus,
            "binding": binding,
        },
        "restart": {
            "max_restarts": max_restarts,
            "backoff": backoff,
            "exit_codes": codes_of(restart_codes),
        },
        "environment": {},
        **container_fields(**containers),
    }
    for entry in env or ():
        variable, equals, value = entry.partition("=")
        if equals:
            flags["environment"][variable] = value
        elif variable in os.environ:
            flags["pass_environment"] = [*flags.get("pass_environment", ()), variable]
        else:
            raise UsageError(f"--env {variable}: expected NAME=VALUE, or a variable that is set")
    fields = merge(fields, _given(flags))
    if not fields.get("command"):
        raise UsageError("no command. Received none after `--`: launcher run -np 2 -- python X.py")
    return _completed(fields)


def _completed(fields: dict[str, Any]) -> JobSpec:
    """The checked job, with its ranks and its backend chosen where they were left open."""
    backend_is_open = fields.get("backend") in (None, "auto")
    spec = build_spec({**fields, "backend": "local"} if backend_is_open else fields)
    chosen: dict[str, Any] = {}
    if spec.hosts and "ranks" not in fields:
        chosen["ranks"] = sum(host.slots for host in spec.hosts)
    if backend_is_open:
        ranks = chosen.get("ranks", spec.ranks)
        chosen["backend"] = target_for(spec).default_backend(ranks)
    return build_spec({**fields, **chosen})


def with_job_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Lets a verb that takes a `spec` take the flags of a job instead."""
    shared = {
        **inspect.signature(spec_from_flags).parameters,
        **inspect.signature(container_fields).parameters,
    }
    del shared["containers"]
    own = {
        name: parameter
        for name, parameter in inspect.signature(verb).parameters.items()
        if name != "spec"
    }

    def command(**values: Any) -> None:
        flags = {name: values.pop(name) for name in shared}
        verb(spec=spec_from_flags(**flags), **values)

    parameters = [*shared.values(), *own.values()]
    keyword_only = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters
    ]
    command.__doc__ = verb.__doc__
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, tables with at least one of theirs."""
    given = {}
    for name, value in flags.items():
        kept = _given(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            given[name] = kept
    return given
