"""One rank fails, hangs or exits: the cause is reported, no process remains, the job resumes."""

import json
import re
import time

import pytest

from tests.launcher.launches import Launch, first_line, note

pytestmark = pytest.mark.multiprocess

ONCE = ("-np", "2", "--backend", "local", "--max-restarts", "0")
AGAIN = ("-np", "2", "--backend", "local", "--max-restarts", "2", "--backoff", "0.1")


def fail(launch: Launch, name: str, fault: str, *options: str) -> str:
    """Runs a job whose rank 1 has the fault in step 5; returns the first line on it."""
    launch.start([*ONCE, *options], launch.program("--loader", "--fault", fault))
    result = launch.finish()
    seconds = time.time() - launch.fault_at()
    note(name, seconds, result)
    assert result.returncode == 1, result.transcript()
    assert seconds < 20, result.transcript()
    return first_line(result)


@pytest.mark.timeout(60)
def test_rank_killed(launch: Launch) -> None:
    line = fail(launch, "kill -9 of a rank in step 5", "os.kill(os.getpid(), 9)")
    assert line == "launcher: killed: rank 1 on localhost was killed by SIGKILL after step 4"
    assert launch.cause()["exit_code"] == 137


@pytest.mark.timeout(60)
def test_rank_raises(launch: Launch) -> None:
    line = fail(launch, "an exception in one rank only", "raise ValueError('the cause itself')")
    assert line == (
        "launcher: error: rank 1 on localhost failed with exit code 1 after step 4: "
        "ValueError: the cause itself"
    )
    assert launch.cause()["last_lines"][-1] == "ValueError: the cause itself"


@pytest.mark.timeout(60)
def test_rank_that_sleeps_forever_is_a_hang_with_stacks(launch: Launch) -> None:
    fault = "def oversleep():\n    time.sleep(1000)\noversleep()"
    line = fail(
        launch, "a rank that sleeps forever (--hang-timeout 2)", fault, "--hang-timeout", "2"
    )
    assert line.startswith("launcher: hang: no rank has finished a step for 2 s")
    for rank, place in ((0, "_wait_for_peers"), (1, "oversleep")):
        log = (launch.run / "logs" / "attempt-0" / f"rank-{rank}.log").read_text()
        assert "most recent call first" in log
        assert f"in {place}" in log


@pytest.mark.timeout(60)
def test_a_hang_restarts_regardless_of_the_exit_codes(launch: Launch) -> None:
    options = [*AGAIN, "--hang-timeout", "1", "--restart-codes", "9"]
    launch.start(options, launch.program("--fault", "time.sleep(1000)"))
    assert launch.finish().returncode == 0
    assert [event["class"] for event in launch.events("failed")] == ["hang"]


@pytest.mark.timeout(60)
def test_rank_that_ends_early_with_code_0(launch: Launch) -> None:
    line = fail(launch, "a rank that exits 0 early", "sys.exit(0)")
    assert re.fullmatch(
        r"launcher: error: rank 1 on localhost ended with exit code 0 at \d\d:\d\d:\d\d "
        "after step 4 while its peers were still running",
        line,
    )


@pytest.mark.timeout(60)
def test_sigterm_to_a_rank_from_outside_is_preemption(launch: Launch) -> None:
    fault = "signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)"
    line = fail(launch, "SIGTERM to one rank, not from the launcher", fault)
    assert line.startswith(
        "launcher: preempted: rank 1 on localhost received a SIGTERM from outside"
    )


@pytest.mark.timeout(60)
def test_peer_that_ignores_sigterm_is_killed_after_the_grace(launch: Launch) -> None:
    fault = "os.kill(os.getpid(), 9)"
    stubborn = "import signal; signal.signal = lambda *a: None; signal.pthread_sigmask(0, {15});"
    source = (
        f"{stubborn} import runpy; runpy.run_path({str(launch.program()[1])!r}, {{}}, '__main__')"
    )
    program = ["python", "-c", source, *launch.program("--fault", fault)[2:]]
    launch.start([*ONCE, "--grace", "1"], program)
    result = launch.finish()
    seconds = time.time() - launch.fault_at()
    note("kill -9 of a rank whose peer ignores SIGTERM (--grace 1)", seconds, result)
    assert result.returncode == 1
    assert seconds > 1, "the peer had its grace"
    assert first_line(result).startswith("launcher: killed: rank 1")


@pytest.mark.timeout(60)
def test_job_resumes_from_the_checkpoint(launch: Launch) -> None:
    launch.start(AGAIN, launch.program("--fault", "os.kill(os.getpid(), 9)", "--at", "6"))
    result = launch.finish()
    assert result.returncode == 0, result.transcript()
    # Step 4 was saved during training; the peer may also have saved step 5 after SIGTERM.
    saved = re.search(r"restart 1 of 2 from the checkpoint of step ([45]) in", result.output)
    assert saved, result.output
    log = (launch.run / "logs" / "attempt-1" / "rank-1.log").read_text()
    assert log.startswith(f"starts at step {saved[1]}\n")
    assert json.loads((launch.shared / "checkpoint.json").read_text()) == {"step": 8, "attempt": 1}
    assert [event["event"] for event in launch.events()].count("restarting") == 1


@pytest.mark.timeout(60)
def test_restarts_are_counted_and_end(launch: Launch) -> None:
    program = launch.program("--fault", "sys.exit(7)", "--times", "99", "--at", "1")
    launch.start(AGAIN, program)
    result = launch.finish()
    assert result.returncode == 1
    assert "2 restarts, exit code 1" in result.output
    assert len(launch.events("failed")) == 3


@pytest.mark.timeout(60)
def test_only_the_given_exit_codes_restart(launch: Launch) -> None:
    launch.start([*AGAIN, "--restart-codes", "8,137"], launch.program("--fault", "sys.exit(7)"))
    result = launch.finish()
    assert result.returncode == 1
    assert "no restart" in result.output


@pytest.mark.timeout(60)
@pytest.mark.parametrize("code", [2, 127])
def test_bad_config_is_never_restarted(launch: Launch, code: int) -> None:
    launch.start(AGAIN, launch.program("--fault", f"sys.exit({code})"))
    result = launch.finish()
    assert result.returncode == 2
    assert "no restart" in result.output


@pytest.mark.timeout(60)
def test_command_not_found(launch: Launch) -> None:
    began = time.time()
    launch.start(AGAIN, ["no-such-command"])
    result = launch.finish()
    note("command not found", time.time() - began, result)
    assert result.returncode == 2
    assert re.fullmatch(
        r"launcher: bad config: rank \d on localhost could not start: "
        "command not found: no-such-command",
        first_line(result),
    )


@pytest.mark.timeout(60)
def test_lines_of_peers_follow_the_cause_and_are_marked(launch: Launch) -> None:
    fault = "print('the cause itself', file=sys.stderr); sys.exit(3)"
    source = (
        "import os, sys, time\n"
        "time.sleep(0.2)\n"
        "if os.environ['LAUNCHER_RANK'] == '0':\n"
        "    print('HorovodInternalError: Connection reset by peer', flush=True); sys.exit(1)\n"
        f"time.sleep(0.3); {fault}"
    )
    launch.start(ONCE, ["python", "-c", source])
    result = launch.finish()
    assert result.returncode == 1
    assert "launcher: error: rank 1 on localhost failed with exit code 3" in result.output
    cause = result.output.index("the cause itself")
    noise = result.output.index("[0 after the failure] HorovodInternalError")
    assert cause < noise
