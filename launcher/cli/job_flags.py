"""The flags of a job, shared by run, submit and render: those of JobSpec, and five more."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher import options
from launcher.errors import UsageError
from launcher.spec import JobSpec, build_spec, merge, read_json, read_toml
from launcher.spec.flag_values import read_hostfile
from launcher.targets import target_for


def spec_from_flags(
    command: Annotated[
        list[str] | None, typer.Argument(help="The program of a rank, after `--`.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with the job's fields; flags override them.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="The same as JSON.", hidden=True)] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, or NAME to pass its value unrecorded. Repeatable."),
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Lines of `NAME slots=N`.", rich_help_panel="Where")
    ] = None,
    **flags: Any,
) -> JobSpec:
    """The job: the fields of the file, overridden by the flags, completed by defaults."""
    fields = read_toml(config) if config else {}
    fields = merge(fields, read_json(job) if job else {})
    given = options.given(JobSpec, flags)
    if command:
        given["command"] = command
    if hostfile is not None:
        if "hosts" in given:
            raise UsageError("expected --hosts or --hostfile. Received: both")
        given["hosts"] = read_hostfile(hostfile)
    fields = merge(fields, merge(given, _environment(env or ())))
    if not fields.get("command"):
        raise UsageError("no command. Received none after `--`: launcher run -np 2 -- python X.py")
    return _completed(fields)


def with_job_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Lets a verb that takes a `spec` take the flags of a job instead."""
    hand_written = dict(inspect.signature(spec_from_flags).parameters)
    del hand_written["flags"]
    shared = [*hand_written.values(), *options.parameters(JobSpec)]
    own = [one for one in inspect.signature(verb).parameters.values() if one.name != "spec"]

    def command(**values: Any) -> None:
        flags = {one.name: values.pop(one.name) for one in shared}
        verb(spec=spec_from_flags(**flags), **values)

    return options.with_parameters(command, [*shared, *own], verb.__doc__)


def _environment(entries: Sequence[str]) -> dict[str, Any]:
    values, passed = {}, []
    for entry in entries:
        variable, equals, value = entry.partition("=")
        if equals:
            values[variable] = value
        elif variable in os.environ:
            passed.append(variable)
        else:
            raise UsageError(f"--env {variable}: expected NAME=VALUE, or a variable that is set")
    fields = {"environment": values, "pass_environment": passed}
    return {name: field for name, field in fields.items() if field}


def _completed(fields: dict[str, Any]) -> JobSpec:
    """The checked job, with its ranks and its backend chosen if they were not given."""
    backend_is_open = fields.get("backend") in (None, "auto")
    spec = build_spec({**fields, "backend": "local"} if backend_is_open else fields)
    chosen: dict[str, Any] = {}
    if spec.hosts and "ranks" not in fields:
        chosen["ranks"] = sum(host.slots for host in spec.hosts)
    if backend_is_open:
        ranks = chosen.get("ranks", spec.ranks)
        chosen["backend"], chosen["backend_reason"] = target_for(spec).default_backend(ranks)
    return build_spec({**fields, **chosen})
