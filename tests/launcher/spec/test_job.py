"""Valid jobs, and the errors for invalid ones."""

import re
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from launcher.cli.job_flags import spec_from_flags
from launcher.errors import SpecError, UsageError
from launcher.spec import JobSpec, Metrics, build_spec, merge, read_toml
from launcher.spec.fields import parse_bytes
from launcher.spec.flag_values import hosts as parse_hosts
from launcher.spec.flag_values import read_hostfile
from launcher.spec.messages import example, toml
from launcher.targets import target_for

COMMAND = {"command": ["python", "train.py"]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "command: expected a value, as in command = "),
        ({"command": []}, "command: "),
        ({"ranks": 0}, "ranks: expected at least 1, as in ranks = 2. Received: 0"),
        ({"rank": 2}, "rank: no such field of a job; did you mean ranks?"),
        ({"backend": "nccl"}, "backend: "),
        ({"name": "My Job"}, "name: "),
        (
            {"resources": {"memory": "2 gigs"}},
            "resources.memory: expected an amount of memory, as in",
        ),
        ({"resources": {"cores": 2}}, "resources.cores: no such field of a job"),
        ({"restart": {"max_restarts": -1}}, "restart.max_restarts: "),
        ({"restart": {"exit_codes": [0]}}, "restart.exit_codes.0: "),
        ({"grace": -1}, "grace: "),
        ({"hosts": [{"name": "a", "slots": 0}]}, "hosts.0.slots: "),
        ({"hosts": [{"name": "-oProxyCommand=x"}]}, "hosts.0.name: "),
        ({"hosts": [{"name": "a"}], "ranks": 2}, "ranks: expected at most the 1 slots"),
        ({"hosts": [{"name": "a"}, {"name": "a"}]}, "hosts: expected each host once"),
        ({"environment": {"A B": "1"}}, "environment.A B"),
        ({"metrics": {"port": 70000}}, "metrics.port: expected at most 65000, as in metrics.port"),
        ({"backoff": 2}, "backoff: no such field of a job; did you mean restart.backoff?"),
        ({"colour": "red"}, "colour: no such field of a job; known are command, name, "),
        (
            {"command": "echo 'two words'"},
            'command: expected a list, as in command = ["echo", "two words"]. Received: ',
        ),
        ({"command": "echo '"}, 'command: expected a list, as in command = ["python", "train.py"]'),
        ({"command": [""]}, "command: expected a program and its arguments"),
        ({"command": ["a\0"]}, "command.0: expected text without the character 0"),
        (
            {"hosts": "n1"},
            "hosts: expected a list, as in hosts = [{ name = "
            '"n1", slots = 1 }]. Received: ' + "'n1'",
        ),
        ({"hosts": ["n1"]}, "hosts.0: expected a table, as in hosts = [{ name = "),
        ({"ranks": 1e3}, "ranks: expected a whole number, as in ranks = 2. Received: 1000.0"),
        ({"ranks": True}, "ranks: expected a whole number"),
        ({"grace": 1e308}, "grace: expected at most 31536000, as in grace = 4. Received: 1e+308"),
        ({"grace": "4"}, "grace: expected a number, as in grace = 4. Received: '4'"),
        ({"restart": {"backoff": float("inf")}}, "restart.backoff: expected a finite number"),
        ({"restart": {"backoff": float("nan")}}, "restart.backoff: expected a finite number"),
        ({"restart": 3}, "restart: expected a table, as in restart = { max_restarts = 3 }"),
        ({"output": ""}, 'output: expected the path of a directory, as in output = "runs"'),
        ({"directory": ""}, "directory: expected the path of a directory, as in directory = "),
        ({"output": "a\0"}, "output: expected the path of a directory"),
        ({"pass_environment": ["A=B"]}, "pass_environment.0: expected text that matches ^"),
        ({"environment": {"A": 1}}, "environment.A: expected text in quotes, as in environment = "),
        ({"resources": {"memory": "9" * 400}}, "resources.memory: expected an amount of memory"),
        ({"resources": {"memory": True}}, "resources.memory: expected a whole number"),
        (
            {"backend": []},
            "backend: expected 'horovod', 'mpi', 'tf', 'local' or 'auto', as in backend = ",
        ),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match="^" + re.escape(said)) as caught:
        build_spec(fields if fields == {} or "command" in fields else COMMAND | fields)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


def test_all_invalid_fields_are_named_together() -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(COMMAND | {"ranks": 0, "grace": -1})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2GiB", 2 << 30), ("2Gi", 2 << 30), ("2GB", 2 * 10**9), ("1.5K", 1500), (7, 7)],
)
def test_amounts_of_memory(text: object, count: int) -> None:
    assert parse_bytes(text) == count


def test_hosts() -> None:
    assert parse_hosts("h1:4, h2") == [{"name": "h1", "slots": 4}, {"name": "h2", "slots": 1}]
    for wrong in ("h1:x", ":4", "", "h1:4,,h2"):
        with pytest.raises(SpecError, match="expected NAME:SLOTS"):
            parse_hosts(wrong)


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True), st.integers(1, 99)))
)
def test_hosts_are_read_back(hosts: list[tuple[str, int]]) -> None:
    if hosts:
        text = ",".join(f"{name}:{slots}" for name, slots in hosts)
        assert parse_hosts(text) == [{"name": name, "slots": slots} for name, slots in hosts]


def test_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two\nh1 slots=4\n\nh2   # one\n")
    assert read_hostfile(path) == [{"name": "h1", "slots": 4}, {"name": "h2", "slots": 1}]
    path.write_text("h1 slots=4\nh2 slots=many\n")
    with pytest.raises(SpecError, match="line 2: expected NAME slots=N"):
        read_hostfile(path)
    with pytest.raises(SpecError, match="No such file"):
        read_hostfile(tmp_path / "none")


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('command = ["a"]\nranks = 2\n[restart]\nmax_restarts = 5\nbackoff = 2.0\n')
    fields = merge(read_toml(path), {"ranks": 4, "restart": {"max_restarts": 1}})
    spec = build_spec(fields)
    assert (spec.ranks, spec.restart.max_restarts, spec.restart.backoff) == (4, 1, 2.0)
    path.write_text("ranks = \n")
    with pytest.raises(SpecError, match="is not valid TOML"):
        read_toml(path)
    with pytest.raises(SpecError, match="No such file"):
        read_toml(tmp_path / "none")


def leaves(model: type[BaseModel], *above: str) -> Iterator[tuple[str, ...]]:
    """The names of all fields of a job, tables first and then what is in them."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, *above, name)


FIELDS = sorted({*leaves(JobSpec), *leaves(Metrics, "metrics")})
SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["", "a", "local", "8GiB", "2.0", "/a", "-x", "\0", "n1:2", "a b"])
    | st.integers()
    | st.sampled_from([0, 1, 10**5, 2**63, 10**400])
    | st.floats()
    | st.booleans()
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "slots", "A", "claim", "b c", ""]), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_any_value_of_any_field_is_a_job_or_a_one_line_error(values: dict[Any, Any]) -> None:
    """From the text of the file to what would be run."""
    fields: dict[str, Any] = {"command": ["a"], "ranks": 2, "backend": "local"}
    for names, value in values.items():
        for name in reversed(names):
            value = {name: value}
        fields = merge(fields, value)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("\n".join(f"{toml(name)} = {written(value)}" for name, value in fields.items()))
        file.flush()
        wrong = said_of(Path(file.name))
    assert all(0 < len(line) < 600 for line in wrong.splitlines())


def said_of(file: Path) -> str:
    """The error for the job in the file; a valid job must render and survive JSON."""
    try:
        spec = spec_from_flags(config=file)
        target_for(spec).render(spec)
    except UsageError as error:
        return str(error)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    return ""


def written(value: object) -> str:
    """Any value as TOML, also those that are invalid in a job."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{toml(name)} = {written(one)}" for name, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float | datetime):
        return repr(value) if isinstance(value, float) else value.isoformat()
    return toml(value)


@pytest.mark.parametrize("names", FIELDS, ids=".".join)
def test_the_example_in_an_error_is_valid(names: tuple[str, ...], tmp_path: Path) -> None:
    shown = example(names, JobSpec)
    assert shown is not None, "say what the field may hold, in launcher/spec/messages.py"
    path = tmp_path / "job.toml"
    path.write_text(f"{'.'.join(names)} = {toml(shown)}\n")
    build_spec({"command": ["a"]} | read_toml(path))


def test_invalid_toml(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    for text in (b"ranks = \xff", b"ranks = " + b"9" * 5000, b"hosts = " + b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(SpecError, match=r"job\.toml is not valid TOML"):
            read_toml(path)
    path.write_bytes(b"ranks = 0x" + b"f" * 5000)
    with pytest.raises(SpecError, match="thousands of digits"):
        build_spec(COMMAND | read_toml(path))


def test_a_job_survives_json() -> None:
    spec = build_spec(COMMAND | {"hosts": [{"name": "a"}], "resources": {"memory": "1Gi"}})
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
