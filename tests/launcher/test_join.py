"""`launcher join`: containers of a job as plain processes, with real faults; the engine's own tests
of the same stand in tests/docker."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.errors import LauncherError, UsageError
from launcher.gang.registry import Registry
from launcher.gang.wire import Arrival, WireError, ask, receive
from tests.jobs import TOKEN, Job
from tests.launcher.launches import PROGRAM, REPOSITORY

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(90)]

_QUICK = ["--backend", "horovod", "--grace", "1", "--silence-timeout", "3", "--backoff", "0.2"]


class Gang:
    """The processes of one job: `members[0]` is the first, which leads."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.token = directory, uuid.uuid4().hex
        self.shared = directory / "shared"
        self.shared.mkdir(parents=True)
        self.port = _free_port()
        self.members: list[Job] = []

    def join(self, *flags: str, program: tuple[str, ...] = (), name: str = "job") -> Job:
        """Starts one more member; the first is told how many there will be by `flags`."""
        number = len(self.members)
        words = ["join", "--name", name, "--join-port", str(self.port), *_QUICK, *flags]
        words += ["--head", "127.0.0.1"] if number else []
        command = ["python", str(PROGRAM), "--shared", str(self.shared), *program]
        directory = self.directory / f"member-{number}"
        directory.mkdir()
        with (directory / "launcher").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words, "-o", str(directory), "--", *command],
                cwd=directory,
                env={**os.environ, TOKEN: self.token, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job = Job([process], directory, self.token, 0)
        self.members.append(job)
        return job

    def says(self, member: int, text: str, seconds: float = 30) -> None:
        limit = time.monotonic() + seconds
        while text not in self.log(member):
            assert time.monotonic() < limit, f"{text!r} is not in\n{self.log(member)}"
            time.sleep(0.05)

    def log(self, member: int) -> str:
        return (self.members[member].directory / "launcher").read_text()

    def end(self, member: int, seconds: float = 40) -> int:
        """The exit code of a member. Raises AssertionError if it does not come."""
        try:
            return self.members[member].processes[0].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {seconds} s\n{self.log(member)}") from None

    def steps(self) -> int:
        """The last step that was saved."""
        path = self.shared / "checkpoint.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Gang]:
    gang = Gang(tmp_path)
    yield gang
    for member in gang.members:
        member.kill()


def test_two_members_run_one_job_and_end_together(gang: Gang) -> None:
    gang.join("--workers", "1", program=("--steps", "5"))
    gang.join(program=("--steps", "5"))
    assert (gang.end(0), gang.end(1)) == (0, 0)
    for rank in (0, 1):
        assert f"[{rank}] step 5" in gang.log(0)
    assert "launcher: succeeded" in gang.log(0)
    assert not gang.members[0].alive()


def test_each_member_carries_its_slots_and_an_index_decides_its_place(gang: Gang) -> None:
    show = ("--steps", "1")
    gang.join("--workers", "2", "--slots", "2", program=show)
    gang.join("--slots", "2", "--index", "2", program=show)
    gang.join("--slots", "2", "--index", "1", program=show)
    assert gang.end(0) == 0, gang.log(0)
    for rank in range(6):
        assert f"[{rank}] step 1" in gang.log(0)
    assert "worker 2 of job" in gang.log(1)
    assert "worker 1 of job" in gang.log(2)


def test_a_rank_that_fails_restarts_the_ranks_of_all_members(gang: Gang) -> None:
    fault = ("--rank", "1", "--at", "8", "--fault", "os.kill(os.getpid(), 9)")
    gang.join("--workers", "1", program=("--steps", "20", *fault))
    gang.join(program=("--steps", "20", *fault))
    assert (gang.end(0), gang.end(1)) == (0, 0), gang.log(0)
    log = gang.log(0)
    assert "launcher: killed: rank 1 on worker-1@" in log
    assert "was killed by SIGKILL after step" in log
    assert "1 restart" in log
    assert gang.steps() == 20


def test_a_member_that_is_killed_and_comes_back_is_taken_in(gang: Gang) -> None:
    gang.join("--workers", "1", program=("--steps", "60"))
    gang.join(program=("--steps", "60"))
    gang.says(0, "[1] step 6")
    gang.members[1].processes[0].kill()
    gang.says(0, "launcher: lost host: rank 1")
    gang.join(program=("--steps", "60"))
    assert (gang.end(0), gang.end(2)) == (0, 0), gang.log(0)
    assert gang.steps() == 60


def test_when_the_first_is_killed_the_others_end_their_ranks_and_wait_for_another(
    gang: Gang,
) -> None:
    gang.join("--workers", "1", program=("--steps", "60"))
    gang.join("--join-timeout", "20", program=("--steps", "60"))
    gang.says(0, "[1] step 6")
    gang.members[0].processes[0].kill()
    limit = time.monotonic() + 8
    while len(_programs(gang)) > 0 and time.monotonic() < limit:
        time.sleep(0.1)
    assert not _programs(gang), "ranks outlive the first member"
    saved = gang.steps()
    head = gang.members.pop(0)
    gang.members.insert(0, head)
    _rejoin_as_head(gang, "--workers", "1", program=("--steps", "60"))
    assert gang.end(2) == 0, gang.log(2)
    assert gang.end(1) == 0
    assert saved < gang.steps() == 60


def test_a_member_that_never_comes_is_named_in_bounded_time(gang: Gang) -> None:
    gang.join("--workers", "2", "--join-timeout", "3")
    gang.join("--index", "2", "--join-timeout", "3")
    assert gang.end(0, 20) == 1
    assert "launcher: worker 1 has not come within 3 s" in gang.log(0)
    assert gang.end(1, 20) == 1
    assert "launcher: lost host: 127.0.0.1:" in gang.log(1)


def test_told_to_stop_all_save_and_the_exit_code_is_143(gang: Gang) -> None:
    gang.join("--workers", "1", program=("--steps", "500"))
    gang.join("--join-timeout", "3", program=("--steps", "500"))
    gang.says(0, "[1] step 6")
    gang.members[0].send_signal(signal.SIGTERM)
    assert gang.end(0) == 143, gang.log(0)
    assert {path.name for path in gang.shared.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    assert gang.end(1) == 1  # nobody leads it any more


def test_a_first_member_that_still_waits_can_be_stopped(gang: Gang) -> None:
    gang.join("--workers", "1")
    limit = time.monotonic() + 20
    while _silent(gang.port):
        assert time.monotonic() < limit
        time.sleep(0.05)
    gang.members[0].send_signal(signal.SIGTERM)
    assert gang.end(0, 5) == 143


def test_a_member_told_to_stop_ends_as_preempted_and_its_rank_has_saved(gang: Gang) -> None:
    gang.join("--workers", "1", "--max-restarts", "0", program=("--steps", "500"))
    gang.join(program=("--steps", "500"))
    gang.says(0, "[1] step 6")
    gang.members[1].send_signal(signal.SIGTERM)
    assert gang.end(1) == 143, gang.log(1)
    assert (gang.shared / "stopped-1").exists()
    assert gang.end(0) == 1
    assert "launcher: preempted: rank 1 on worker-1@" in gang.log(0)


def test_wrong_flags_are_refused_at_once(gang: Gang) -> None:
    gang.join("--workers", "1", "--backend", "mpi")
    assert gang.end(0) == 2
    assert "--backend: expected horovod or tf between containers. Received: mpi" in gang.log(0)
    alone = subprocess.run(
        [sys.executable, "-m", "launcher", "join", "--index", "1", *_QUICK, "--", "true"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert alone.returncode == 2
    assert "--head: expected the name of the first container" in alone.stderr


def test_a_worker_runs_nothing_but_its_own_command(gang: Gang, tmp_path: Path) -> None:
    """Whoever poses as the leader may only start, with few variables, what the worker was given."""
    with Registry("job", 1, 1, gang.port) as registry:
        gang.members.append(Job([], tmp_path, gang.token, 0))  # we are the first
        gang.join(program=("--steps", "1"))
        (worker,) = registry.wait(20)
        evil = {"LD_PRELOAD": "/evil.so", "HOROVOD_TIMELINE": "/tmp/x", "LAUNCHER_WORLD_SIZE": "1"}
        evil |= {"LAUNCHER_ATTEMPT": "0", "LAUNCHER_RUN_DIR": "/etc/../somewhere"}
        order = {"argv": ["touch", str(tmp_path / "owned")], "cwd": "/", "environment": evil}
        with socket.create_connection(("127.0.0.1", worker.port), 5) as connection:
            line = json.dumps({**order, "rank": 0, "local_rank": 0}) + "\n"
            connection.sendall(line.encode())
            process = _rank_of(gang)
            variables = process.environ()
        assert "rank_program" in " ".join(process.cmdline())
        assert not {"LD_PRELOAD", "HOROVOD_TIMELINE"} & variables.keys()
        assert variables["LAUNCHER_RUN_DIR"] == str(tmp_path / "member-1" / "somewhere")
        registry.finish(0)
        assert gang.end(1) == 0
    assert not (tmp_path / "owned").exists()


def test_the_registry_gives_places_and_says_why_not() -> None:
    with Registry("digits", 2, 1, port := _free_port()) as registry:
        here = ("127.0.0.1", port)

        def come(id: str, **other: object) -> tuple[int | None, str | None]:  # noqa: A002
            fields = {"job": "digits", "id": id, "port": 1, "slots": 1, **other}
            answer = ask(here, Arrival(**fields)).answer  # type: ignore[arg-type]
            return answer.index, answer.refused

        assert come("a") == (1, None)
        assert come("b") == (2, None)
        assert come("a") == (1, None)
        assert come("c") == (None, "all 2 workers of this job are here")
        assert come("c", index=2) == (2, None)  # the pod of this index was replaced
        assert come("d", job="x") == (None, "this is job 'digits', not 'x'")
        assert come("d", slots=3) == (None, "expected 1 ranks per container. Received: 3")
        assert come("d", index=7) == (None, "expected a worker from 1 to 2. Received: 7")
        assert [worker.id for worker in registry.wait(1)] == ["a", "c"]


def test_what_is_not_of_the_protocol_is_let_go() -> None:
    with Registry("job", 1, 1, port := _free_port()) as registry:
        for noise in (b"\x00" * 10 + b"\n", b"[]\n", b'{"job": 1}\n', b"x" * 200_000):
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                try:
                    connection.sendall(noise)
                    assert connection.recv(10) == b""
                except ConnectionError:
                    pass  # it hung up while we were still talking
        with pytest.raises(LauncherError, match="worker 1 has not come"):
            registry.wait(0.2)
        with pytest.raises(UsageError, match=r"container.port: \d+ cannot be used"):
            Registry("job", 1, 1, port)


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"3\n", b""])
def test_a_line_that_is_no_object_is_refused(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(line)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="expected"):
            receive(ours)


def _rejoin_as_head(gang: Gang, *flags: str, program: tuple[str, ...]) -> None:
    number = len(gang.members)
    kept, gang.members = gang.members, []
    directory, gang.directory = gang.directory, gang.directory / f"again-{number}"
    gang.directory.mkdir()
    gang.join(*flags, program=program)
    gang.members = [*kept, *gang.members]
    gang.directory = directory


def _programs(gang: Gang) -> list[psutil.Process]:
    found = []
    for process in gang.members[0].alive():
        try:
            if str(PROGRAM) in process.cmdline() and "join" not in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _rank_of(gang: Gang) -> psutil.Process:
    limit = time.monotonic() + 20
    while not (found := _programs(gang)):
        assert time.monotonic() < limit, gang.log(1)
        time.sleep(0.02)
    return found[0]


def _silent(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    """A port whose neighbour above it, for the rendezvous, is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
