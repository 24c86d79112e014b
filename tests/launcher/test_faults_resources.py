"""Memory, disk and ports run out: named as such, in bounded time, and no half-written file."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.runs.reader import read_run
from tests.launcher.launches import Launch, first_line, note
from tests.requirements import require_horovod

pytestmark = pytest.mark.multiprocess

ONCE = ("-np", "2", "--backend", "local", "--max-restarts", "0")
GREEDY = "hoard = []\nwhile True:\n    hoard.append(b'x' * (20 << 20)); time.sleep(0.02)"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs: needs root and CAP_SYS_ADMIN")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A control group with 300 MiB, to be entered by writing to its cgroup.procs."""
    name = f"launcher-test-{os.getpid()}"
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / name
        try:
            group.mkdir()
            (group / limit).write_text(str(300 << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        time.sleep(0.2)
        group.rmdir()
        return
    pytest.skip("cannot make a control group with a memory limit: needs root")


@pytest.mark.timeout(60)
def test_rank_over_its_memory_limit(launch: Launch) -> None:
    launch.start([*ONCE, "--memory", "200MiB"], launch.program("--fault", GREEDY))
    result = launch.finish()
    note("a rank exceeding its memory limit", time.time() - launch.fault_at(), result)
    assert result.returncode == 1
    assert first_line(result) == (
        "launcher: oom: rank 1 on localhost was killed for exceeding its memory limit after step 4"
    )
    assert "give the rank more memory" in result.output


@pytest.mark.timeout(60)
def test_rank_killed_by_the_kernel_for_memory(launch: Launch, memory_cgroup: Path) -> None:
    launch.start(ONCE, launch.program("--fault", GREEDY))
    (memory_cgroup / "cgroup.procs").write_text(str(launch.pid))
    result = launch.finish()
    note("the kernel kills a rank for memory", time.time() - launch.fault_at(), result)
    assert result.returncode == 1
    assert first_line(result).startswith(
        "launcher: oom: rank 1 on localhost was killed by the kernel: out of memory"
    )


@pytest.mark.timeout(60)
def test_resource_exhausted_is_out_of_memory(launch: Launch) -> None:
    fault = "raise RuntimeError('RESOURCE_EXHAUSTED: failed to allocate 1.2GiB')"
    launch.start(ONCE, launch.program("--fault", fault))
    result = launch.finish()
    assert result.returncode == 1
    assert launch.cause()["class"] == "oom"


@pytest.mark.timeout(60)
def test_disk_full_while_logging(launch: Launch, small_disk: Path) -> None:
    noise = "print('x' * 1000 + chr(10), flush=True, end='')\n" * 1
    fault = f"for _ in range(600):\n    {noise}"
    program = launch.program("--fault", fault, "--steps", "12")
    began = time.time()
    launch.start([*ONCE, "-o", str(small_disk / "runs"), "--quiet"], program)
    result = launch.finish()
    note("disk full while logging: the job continues", time.time() - began, result)
    assert result.returncode == 0, result.transcript()
    assert "the logs in" in result.output
    assert "No space left on device; the job continues" in result.output
    run = next((small_disk / "runs").iterdir())
    for line in (run / "journal.jsonl").read_text().splitlines():
        json.loads(line)
    log = (run / "logs" / "attempt-0" / "rank-1.log").read_text()
    assert log.endswith("\n")
    assert {len(line) for line in log.splitlines() if line.startswith("x")} == {1000}


@pytest.mark.timeout(60)
def test_disk_full_while_saving(launch: Launch, small_disk: Path) -> None:
    shared = str(small_disk)
    fill = f"open({shared!r} + '/fill', 'wb', buffering=0).write(bytes(1 << 20))"
    program = ["python", launch.program()[1], "--shared", shared, "--at", "6", "--rank", "0"]
    launch.start(ONCE, [*program, "--fault", fill, "--steps", "100"])
    result = launch.finish()
    seconds = time.time() - float((small_disk / "fault-0").read_text())
    note("disk full while saving", seconds, result)
    assert result.returncode == 1, result.transcript()
    assert "a disk is full" in result.output
    assert launch.cause()["class"] == "disk full"
    assert json.loads((small_disk / "checkpoint.json").read_text())["step"] in {4, 5}
    assert not list(small_disk.glob(".checkpoint*")), "no half-written file"


@pytest.mark.timeout(60)
def test_a_run_that_fills_its_own_disk_is_not_lost(launch: Launch, small_disk: Path) -> None:
    # The first write fills the disk, the second fails.
    fill = f"fill = open({str(small_disk)!r} + '/fill', 'ab', buffering=0)"
    fault = f"{fill}; fill.write(bytes(1 << 20)); fill.write(bytes(1 << 20))"
    launch.start([*ONCE, "-o", str(small_disk / "runs")], launch.program("--fault", fault))
    result = launch.finish()
    assert result.returncode == 1, result.transcript()
    (run,) = (small_disk / "runs").iterdir()
    assert read_run(run).state == "failed"
    assert not list(run.rglob("*.part"))


@pytest.mark.timeout(60)
def test_rendezvous_port_in_use(launch: Launch) -> None:
    require_horovod()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        began = time.time()
        options = ["-np", "2", "--backend", "horovod", "--rendezvous-port", port]
        launch.start(options, launch.program())
        result = launch.finish()
    note("the rendezvous port is in use", time.time() - began, result)
    assert result.returncode == 2
    assert f"127.0.0.1:{port} cannot be used (Address already in use" in first_line(result)
    assert f"process {os.getpid()}" in first_line(result)


@pytest.mark.timeout(60)
def test_port_of_a_rank_in_use(launch: Launch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        fault = f"socket.create_server(('127.0.0.1', {holder.getsockname()[1]}))"
        launch.start(ONCE, launch.program("--fault", fault))
        result = launch.finish()
    note("a port that a rank needs is in use", time.time() - launch.fault_at(), result)
    assert result.returncode == 1
    assert "hint: a port is in use" in result.output


@pytest.mark.timeout(60)
def test_output_directory_that_cannot_be_written(launch: Launch) -> None:
    launch.start([*ONCE, "-o", "/proc/runs"], launch.program())
    result = launch.finish()
    assert result.returncode == 1
    assert "choose another directory with --output" in result.output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_hundred_restarts_do_not_leak(launch: Launch) -> None:
    options = ["-np", "1", "--backend", "horovod", "--max-restarts", "200", "--backoff", "0"]
    began = time.time()
    launch.start([*options, "--quiet"], ["sh", "-c", "exit 9"])
    process = psutil.Process(launch.pid)
    counts: dict[int, tuple[int, int, int]] = {}

    def look() -> bool:
        failed = len(launch.events("restarting"))
        if failed >= 5 and failed not in counts:
            ports = sum(one.status == psutil.CONN_LISTEN for one in process.net_connections())
            counts[failed] = (process.num_fds(), len(process.children(recursive=True)), ports)
        return failed >= 195

    launch.wait_until(look, seconds=300)
    result = launch.job.wait(360)
    note("200 restarts in a row", time.time() - began, result)
    assert result.orphans == ()
    assert result.returncode == 1
    assert "200 restarts, exit code 1" in result.output
    early = [counts[at] for at in sorted(counts)[:20]]
    late = [counts[at] for at in sorted(counts)[-20:]]
    # Looked at in any moment of an attempt; one leak a restart would make it 190 more.
    for column, kind in enumerate(("descriptors", "processes", "listening ports")):
        assert max(row[column] for row in late) < max(row[column] for row in early) + 8, kind
    assert list(launch.temporary.iterdir()) == []
    assert read_run(launch.run).attempt == 200
