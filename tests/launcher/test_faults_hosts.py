"""Hosts that do not answer, differ, or are cut off in mid-job: real sshd in network namespaces."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.launcher import networks
from tests.launcher.launches import Launch, first_line, note

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[networks.Network]:
    """Three hosts; the last one never answers."""
    lacking = networks.missing()
    if lacking is not None:
        pytest.skip(lacking)
    network = networks.Network(tmp_path_factory.mktemp("network") / "ssh", hosts=3)
    try:
        network.silence(network.hosts[2])
        yield network
    finally:
        network.close()


@pytest.fixture
def options(network: networks.Network) -> list[str]:
    """Two ranks on two hosts, which count as lost after three seconds."""
    hosts = ",".join(f"{host}:1" for host in network.hosts[:2])
    return ["--hosts", hosts, "--ssh", network.ssh, "--silence-timeout", "3"]


def gone(launch: Launch, network: networks.Network, seconds: float = 20) -> None:
    """Waits until no host runs anything of the job."""
    launch.wait_until(lambda: not any(map(network.processes, network.hosts)), seconds)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["local", "mpi"])
def test_ranks_run_on_their_hosts(
    launch: Launch, network: networks.Network, options: list[str], backend: str
) -> None:
    launch.start([*options, "--backend", backend], launch.program())
    result = launch.finish(60)
    assert result.returncode == 0, result.transcript()
    up = {event["rank"]: event["host"] for event in launch.events("rank_up")}
    assert up == dict(enumerate(network.hosts[:2]))
    gone(launch, network)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["local", "mpi"])
def test_secrets_do_not_reach_any_command_line(
    launch: Launch, network: networks.Network, options: list[str], backend: str
) -> None:
    source = "import os, time; print('up', len(os.environ['API_TOKEN'])); time.sleep(2)"
    passed = [*options, "--backend", backend, "--env", "API_TOKEN", "--env", "API_KEY=hush-43"]
    launch.start(passed, ["python", "-c", source], environment={"API_TOKEN": "hush-42"})
    launch.wait_until(lambda: launch.text().count("] up 7") == 2, seconds=40)
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
    ours = [line for line in shown.stdout.splitlines() if str(launch.directory) not in line]
    assert "hush-42" not in shown.stdout
    assert not [line for line in ours if "hush-43" in line and "launcher run" not in line]
    assert launch.finish(60).returncode == 0
    for path in launch.run.rglob("*"):
        assert not path.is_file() or "hush-4" not in path.read_text(), path


@pytest.mark.timeout(120)
def test_rank_killed_on_another_host(
    launch: Launch, network: networks.Network, options: list[str]
) -> None:
    program = launch.program("--fault", "os.kill(os.getpid(), 9)", "--loader")
    launch.start([*options, "--backend", "local", "--max-restarts", "0"], program)
    result = launch.finish(60)
    note("kill -9 of a rank on another host", time.time() - launch.fault_at(), result)
    assert result.returncode == 1
    place = f"rank 1 on {network.hosts[1]}"
    assert first_line(result) == f"launcher: killed: {place} was killed by SIGKILL after step 4"
    gone(launch, network)


@pytest.mark.timeout(120)
def test_host_that_does_not_answer(launch: Launch, network: networks.Network) -> None:
    began = time.time()
    hosts = ",".join(f"{host}:1" for host in network.hosts)
    options = ["--hosts", hosts, "--ssh", network.ssh, "--backend", "local"]
    launch.start(options, launch.program())
    result = launch.finish(60)
    note("unreachable host (a namespace that does not answer)", time.time() - began, result)
    assert result.returncode == 1
    line = first_line(result)
    assert line.startswith(f"launcher: host {network.hosts[2]} cannot be reached: ")
    assert "timed out" in line
    gone(launch, network)


@pytest.mark.timeout(120)
def test_kill_9_of_the_launcher_ends_ranks_on_other_hosts(
    launch: Launch, network: networks.Network, options: list[str]
) -> None:
    program = launch.program("--steps", "1000", "--loader")
    launch.start([*options, "--backend", "local"], program)
    launch.wait_until(lambda: launch.events("beat"), seconds=40)
    began = time.time()
    subprocess.run(["kill", "-9", str(launch.pid)], check=True)
    gone(launch, network)
    seconds = time.time() - began
    note("kill -9 of the launcher, ranks on other hosts", seconds, launch.finish(60))
    assert seconds < 10


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["local", "mpi"])
def test_host_disconnected_during_a_job(
    launch: Launch, network: networks.Network, options: list[str], backend: str
) -> None:
    # Rank 0, which writes the checkpoints, sits on the host that is lost.
    host = network.hosts[0]
    more = ["--backend", backend, "--max-restarts", "20", "--backoff", "0.5"]
    program = launch.program("--steps", "60", "--seconds", "0.1", "--save-every", "2")
    launch.start([*options, *more], program)
    launch.wait_until(lambda: launch.events("checkpoint"), seconds=40)
    network.cut(host)
    began = time.time()
    try:
        launch.wait_until(lambda: launch.events("failed"), seconds=40)
        noticed = time.time() - began
        launch.wait_until(lambda: not network.processes(host), seconds=40)
        both_ended = time.time() - began
    finally:
        network.mend(host)
    result = launch.finish(150)
    assert result.returncode == 0, result.transcript()
    assert launch.events("failed")[0]["class"] == "lost host", result.transcript()
    assert launch.events("failed")[0]["rank"] == 0 or backend == "mpi"
    writers = [int(line) for line in (launch.shared / "saves").read_text().split()]
    assert writers[-1] > 0
    assert noticed < 30
    if backend == "local":
        note("a host disconnected during the job, reconnected later: resumes", both_ended, result)
    gone(launch, network)


# Rank 0 ignores SIGTERM and writes for its attempt; the second attempt ends after a while.
WRITER = """
import os, pathlib, signal, sys, time
attempt, rank = os.environ["LAUNCHER_ATTEMPT"], os.environ["LAUNCHER_RANK"]
if rank == "0":
    signal.signal(signal.SIGTERM, lambda *_: None)
print("up", flush=True)
for _ in range(1000 if attempt == "0" else 30):
    time.sleep(0.05)
    if rank == "0":
        with open(sys.argv[1] + "/saves", "a") as saves:
            saves.write(attempt + "\\n")
"""


@pytest.mark.timeout(120)
def test_no_attempt_writes_before_the_previous_one_has_ended_on_a_disconnected_host(
    launch: Launch, network: networks.Network, options: list[str]
) -> None:
    """The host is back at once, and free for the next attempt, while its rank still has grace."""
    more = ["--backend", "local", "--backoff", "0.1", "--max-restarts", "9", "--grace", "8"]
    launch.start([*options, *more], ["python", "-c", WRITER, str(launch.shared)])
    launch.wait_until(lambda: launch.text().count("] up") == 2, seconds=40)
    network.cut(network.hosts[0])
    try:
        launch.wait_until(lambda: launch.events("failed"), seconds=40)
    finally:
        network.mend(network.hosts[0])
    result = launch.finish(110)
    assert result.returncode == 0, result.transcript()
    assert launch.events("failed")[0]["class"] == "lost host"
    # The next attempt waits for the grace period of the rank on that host.
    assert launch.events("restarting")[0]["seconds"] > 5.0
    writers = [int(line) for line in (launch.shared / "saves").read_text().split()]
    assert writers == sorted(writers)
    assert writers[0] == 0
    assert writers[-1] > 0


@pytest.mark.timeout(60)
def test_invalid_ssh_command(launch: Launch, network: networks.Network) -> None:
    hosts = ["--hosts", f"{network.hosts[0]}:1", "--ssh", "/no/such/ssh", "--backend", "local"]
    launch.start(hosts, launch.program())
    result = launch.finish()
    assert result.returncode == 2
    assert first_line(result) == (
        "launcher: ssh: /no/such/ssh cannot be run: No such file or directory"
    )
