"""What a job may be, and what is said of one that may not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.spec import build_spec, merge, parse_bytes, parse_hosts, read_hostfile, read_toml

COMMAND = {"command": ["python", "train.py"]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "command: field required"),
        ({"command": []}, "command: "),
        ({"ranks": 0}, "ranks: input should be greater than or equal to 1. Received: 0"),
        ({"rank": 2}, "rank: no such field of a job"),
        ({"backend": "nccl"}, "backend: "),
        ({"name": "My Job"}, "name: "),
        (
            {"resources": {"memory": "2 gigs"}},
            "resources.memory: expected an amount of memory such",
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
        ({"metrics": {"port": 70000}}, "metrics.port: "),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(
        SpecError, match="^" + said.replace(".", r"\.").replace("(", r"\(")
    ) as caught:
        build_spec(fields if fields == {} or "command" in fields else COMMAND | fields)
    assert caught.value.exit_code == 2


def test_every_wrong_field_is_named_at_once() -> None:
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
    with pytest.raises(SpecError, match="is no TOML"):
        read_toml(path)
    with pytest.raises(SpecError, match="No such file"):
        read_toml(tmp_path / "none")


def test_a_job_survives_json() -> None:
    spec = build_spec(COMMAND | {"hosts": [{"name": "a"}], "resources": {"memory": "1Gi"}})
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
