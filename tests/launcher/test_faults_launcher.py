"""The launcher itself is stopped or killed: ranks save, or end by themselves; nothing survives."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.launcher.launches import Launch, note
from tests.processes import REPOSITORY

pytestmark = pytest.mark.multiprocess

SLOW = ("--steps", "1000", "--loader")
TWO = ("-np", "2", "--backend", "local")


def start(launch: Launch, *options: str) -> None:
    launch.start([*TWO, *options], launch.program(*SLOW))
    launch.wait_for_step(5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)]
)
def test_a_signal_lets_the_ranks_save(launch: Launch, number: signal.Signals, code: int) -> None:
    start(launch)
    began = time.time()
    launch.job.send_signal(number)
    result = launch.finish()
    note(f"{number.name} to the launcher", time.time() - began, result)
    assert result.returncode == code, result.transcript()
    assert {path.name for path in launch.shared.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    assert {event["exit_code"] for event in launch.events("rank_ended")} == {143}
    assert launch.events("done")[0]["result"] == "stopped"
    assert not launch.events("failed"), "to be stopped is no failure"


@pytest.mark.timeout(60)
def test_a_second_signal_kills(launch: Launch) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, lambda *a: None); print('up'); time.sleep(99)"
    )
    launch.start(TWO, ["python", "-c", f"{stubborn}; time.sleep(99)"])
    launch.wait_until(lambda: launch.text().count("] up") == 2)
    launch.job.send_signal(signal.SIGTERM)
    launch.wait_until(lambda: "save and stop" in launch.text())
    began = time.time()
    launch.job.send_signal(signal.SIGTERM)
    result = launch.finish()
    note("SIGTERM twice, the ranks ignore it", time.time() - began, result)
    assert result.returncode == 143
    assert {event["exit_code"] for event in launch.events("rank_ended")} == {137}


@pytest.mark.timeout(60)
def test_ranks_that_do_not_save_in_time_are_killed(launch: Launch) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, lambda *a: None); print('up'); time.sleep(99)"
    )
    launch.start([*TWO, "--save-timeout", "1"], ["python", "-c", stubborn])
    launch.wait_until(lambda: launch.text().count("] up") == 2)
    began = time.time()
    launch.job.send_signal(signal.SIGTERM)
    result = launch.finish()
    assert result.returncode == 143
    assert time.time() - began < 15


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["local", "mpi"])
def test_kill_9_of_the_launcher_ends_the_ranks(launch: Launch, backend: str) -> None:
    launch.start(["-np", "2", "--backend", backend], launch.program(*SLOW))
    launch.wait_for_step(5)
    assert len(launch.job.alive()) > 4
    began = time.time()
    psutil.Process(launch.pid).kill()
    launch.wait_until(lambda: len(launch.job.alive()) == 0, seconds=15)
    seconds = time.time() - began
    result = launch.finish()
    if backend == "local":
        note("kill -9 of the launcher", seconds, result)
    assert result.returncode == -9
    assert {path.name for path in launch.shared.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    status = launcher(launch, "status")
    assert status.returncode == 1
    assert "lost" in status.stdout


# Ignores SIGTERM, and keeps in a file for how long it has lived after it.
STUBBORN = """
import os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
lived = open(os.path.join(sys.argv[1], "lived-" + os.environ["LAUNCHER_RANK"]), "w")
print("up", flush=True)
while True:
    time.sleep(0.02)
    lived.seek(0)
    lived.write(f"{time.monotonic() - told[0] if told else 0.0:12.3f}")
    lived.flush()
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("agents_too", [False, True])
def test_kill_9_of_the_launcher_ends_ranks_that_ignore_sigterm(
    launch: Launch, agents_too: bool
) -> None:
    launch.start([*TWO, "--grace", "30"], ["python", "-c", STUBBORN, str(launch.shared)])
    launch.wait_until(lambda: launch.text().count("] up") == 2)
    agents = psutil.Process(launch.pid).children() if agents_too else []
    psutil.Process(launch.pid).kill()
    for agent in agents:
        agent.kill()  # only the kernel can end the ranks now
    launch.wait_until(lambda: len(launch.job.alive()) == 0, seconds=20)
    launch.finish()
    if not agents_too:
        # Five seconds are promised whatever the grace; the rank counts from the SIGTERM it gets.
        for rank in (0, 1):
            assert 3.0 < float((launch.shared / f"lived-{rank}").read_text()) < 5.5


@pytest.mark.timeout(60)
def test_ranks_do_not_inherit_variables_of_a_surrounding_job(launch: Launch) -> None:
    around = (
        *("TF_CONFIG", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_x", "OMPI_MCA_ess", "PMI_RANK"),
        *("PMIX_RANK", "LAUNCHER_ATTEMPT", "LAUNCHER_METRICS_PORT", "HOROVOD_RANK", "HOROVOD_SIZE"),
        *("HOROVOD_LOCAL_RANK", "HOROVOD_CROSS_SIZE"),
    )
    source = (
        "import os; print([n for n, v in os.environ.items() if v == 'around'], os.environ['A'])"
    )
    environment = {**dict.fromkeys(around, "around"), "A": "kept"}
    launch.start(TWO, ["python", "-c", source], environment=environment)
    assert launch.finish().returncode == 0
    for rank in (0, 1):
        log = launch.run / "logs" / "attempt-0" / f"rank-{rank}.log"
        assert log.read_text() == "[] kept\n"


@pytest.mark.timeout(60)
def test_a_slow_or_stopped_launcher_receives_the_exit_of_a_rank(launch: Launch) -> None:
    source = (
        "import time; print('up', flush=True); time.sleep(1)\n"
        "for number in range(30000): print('line', number)"
    )
    launch.start([*TWO, "--max-restarts", "0"], ["python", "-c", source])
    launch.wait_until(lambda: launch.text().count("] up") == 2)
    process = psutil.Process(launch.pid)
    process.suspend()
    time.sleep(5)
    process.resume()
    result = launch.finish(50)
    assert result.returncode == 0, result.output[-2000:]
    for rank in (0, 1):
        log = launch.run / "logs" / "attempt-0" / f"rank-{rank}.log"
        assert log.read_text().splitlines()[-1] == "line 29999"


@pytest.mark.timeout(60)
def test_kill_9_of_the_agents_leaves_no_rank(launch: Launch) -> None:
    launch.start([*TWO, "--max-restarts", "0"], launch.program(*SLOW))
    launch.wait_for_step(5)
    began = time.time()
    for agent in psutil.Process(launch.pid).children():
        agent.kill()
    result = launch.finish()
    note("kill -9 of the agents between launcher and ranks", time.time() - began, result)
    assert result.returncode == 1
    assert launch.cause()["class"] == "killed"


@pytest.mark.timeout(60)
def test_cancel_from_another_terminal(launch: Launch) -> None:
    start(launch)
    cancelled = launcher(launch, "cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "stopped" in cancelled.stdout
    result = launch.finish()
    assert result.returncode == 143
    assert len(list(launch.shared.glob("stopped-*"))) == 2


@pytest.mark.timeout(60)
def test_a_process_that_leaves_session_and_parent_does_not_survive(launch: Launch) -> None:
    daemon = (
        "subprocess.Popen([sys.executable, '-c', "
        "'import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(1000)']).wait()"
    )
    launch.start([*TWO, "--max-restarts", "0"], launch.program("--fault", daemon))
    result = launch.finish()
    assert result.returncode == 0, result.transcript()


def launcher(launch: Launch, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Another verb of the launcher on the same output directory."""
    verb, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "launcher", verb, *rest, "-o", str(launch.output)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
