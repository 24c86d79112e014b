"""The doctor on this machine, and on machines that lack something."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from launcher.doctor import machine, services, software
from launcher.doctor.finding import Finding
from syncbn import native
from tests.processes import REPOSITORY


def doctor(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_this_machine_passes_and_two_ranks_all_reduce() -> None:
    done = doctor("--json")
    findings = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stdout
    assert findings["TensorFlow"]["state"] == findings["self-test"]["state"] == "ok"
    assert " in " in findings["self-test"]["text"]
    assert "MPI" in findings
    wanted = {"Keras", "GPUs", "Horovod", "cores", "shared memory", "open files", "ports", "disk"}
    wanted.add("kernels")
    assert wanted <= findings.keys()
    for one in findings.values():
        assert one["state"] == "ok" or one["fix"], "whatever is not well says how to fix it"


@pytest.mark.timeout(180)
def test_a_broken_requirement_is_exit_code_1_with_a_fix() -> None:
    done = doctor("--no-self-test", "--output", "/proc/runs", KERAS_BACKEND="numpy")
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert "fix: export KERAS_BACKEND=tensorflow" in done.stdout
    assert "fix: choose another directory: --output DIRECTORY" in done.stdout


@pytest.mark.parametrize(
    ("path", "reason", "fix"),
    [
        ("native", None, ""),
        ("tensorflow", "the layers run on a GPU", ""),
        ("tensorflow", "SYNCBN_NATIVE=0 is set", ""),
        (
            "tensorflow",
            "no C++ compiler to build the kernels with",
            "python -m syncbn.native.build",
        ),
        ("tensorflow", "SYNCBN_MARCH must be one of x86-64-v2, ...", "unset SYNCBN_MARCH"),
    ],
)
def test_missing_kernels_are_a_warning_unless_intended(
    path: Literal["native", "tensorflow"], reason: str | None, fix: str
) -> None:
    status = native.Status(path, None, None, "2.21.0", reason)
    finding = software.judge_kernels({"path": path, "reason": reason, "text": str(status)})
    assert (finding.state, finding.fix) == ("warning" if fix else "ok", fix)
    assert finding.text == str(status)


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    finding = only(machine.check_cores())
    assert (finding.state, finding.fix) == ("warning", "unset OMP_NUM_THREADS")


def test_the_fix_for_open_files_works() -> None:
    """As in a shell: run the suggested fix, then the check again."""
    look = f"{sys.executable} -c '{LOOK}'"
    script = f'ulimit -Sn 256; fix=$({look}); echo "$fix"; eval "$fix"; {look}; ulimit -n'
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    fix, *left, now = done.stdout.splitlines()
    assert fix.startswith("ulimit -n ")
    assert left == [""], "nothing more to fix"
    assert int(now) >= 4096


LOOK = (
    "from launcher.doctor import machine\nfor finding in machine.check_limits(): print(finding.fix)"
)


@pytest.mark.parametrize(
    ("soft", "hard", "capable", "fix"),
    [
        (256, 5000, False, "ulimit -n 5000"),
        (256, 1 << 20, False, "ulimit -n 65536"),
        (256, resource.RLIM_INFINITY, False, "ulimit -n 65536"),
        (256, 1024, True, "ulimit -n 65536"),
        (256, 1024, False, "echo '* - nofile 65536' >> /etc/security/limits.conf as root"),
    ],
)
def test_the_fix_does_not_exceed_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, capable: bool, fix: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(machine, "_may_raise_limits", lambda: capable)
    finding = only(machine.check_limits())
    assert finding.state == "warning"
    assert finding.fix.startswith(fix)


def test_an_output_directory_that_does_not_exist_yet(tmp_path: Path) -> None:
    finding = only(machine.check_disk(tmp_path / "a" / "b"))
    assert finding.state in {"ok", "warning"}
    assert str(tmp_path) in finding.text


def test_no_programs_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(services.check_docker()).fix == "apt-get install docker.io"
    assert only(services.check_kubernetes()).state == "warning"


def test_a_docker_engine_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert only(services.check_docker()).text == "Docker Engine does not answer"


@pytest.mark.parametrize(
    ("script", "state", "text"),
    [
        ("echo 'mpirun (Open MPI) 4.1.8'", "ok", "mpirun (Open MPI) 4.1.8, "),
        ("echo 'mpirun (Open MPI) 5.0.3'", "warning", "mpirun (Open MPI) 5.0.3: horovodrun passes"),
        ("exit 3", "ok", "unknown version, "),
    ],
)
def test_mpi_says_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, state: str, text: str
) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f"#!/bin/sh\n{script}\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr(software, "find_mpirun", lambda: str(mpirun))
    finding = only(software.check_mpi())
    assert (finding.state, finding.text.startswith(text)) == (state, True), finding
    assert bool(finding.fix) is (state != "ok")
