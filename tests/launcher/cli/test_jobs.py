"""The verbs on real jobs: run, submit, status, logs, list and cancel."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.runs.processes import ProcessIdentity
from launcher.runs.writer import RunWriter
from launcher.spec import build_spec
from tests.launcher.cli.commands import JOB, launcher
from tests.launcher.launches import PROGRAM, Launch


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_events_as_json(launch: Launch) -> None:
    launch.start(["-np", "2", *JOB, "--json"], launch.program("--fault", "sys.exit(3)"))
    result = launch.finish()
    events = [json.loads(line) for line in launch.text().splitlines()]
    assert events[0]["event"] == "run"
    assert events[-1] | {"seconds": 0} == events[-1] | {"result": "succeeded", "seconds": 0}
    failed = next(event for event in events if event["event"] == "failed")
    assert (failed["rank"], failed["exit_code"], failed["class"]) == (1, 3, "error")
    assert result.returncode == 0


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_quiet_prints_the_failure_and_the_result_only(launch: Launch) -> None:
    options = ["-np", "2", *JOB, "--quiet", "--max-restarts", "0"]
    launch.start(options, launch.program("--fault", "sys.exit(3)"))
    launch.finish()
    lines = [line for line in launch.text().splitlines() if not line.startswith("    ")]
    assert len(lines) == 2
    assert "failed with exit code 3" in lines[0]
    assert lines[1].startswith("launcher: failed after")


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_lines_of_ranks_stay_whole(launch: Launch) -> None:
    source = (
        "import os, sys\n"
        "rank = os.environ['LAUNCHER_RANK']\n"
        "for _ in range(2000):\n"
        "    for part in range(10):\n"
        "        sys.stdout.write(rank * 10); sys.stdout.flush() if part == 5 else None\n"
        "    sys.stdout.write(chr(10))\n"
    )
    launch.start(["-np", "3", *JOB], ["python", "-c", source])
    assert launch.finish().returncode == 0
    lines = [line for line in launch.text().splitlines() if line.startswith("[")]
    assert len(lines) == 6000
    assert set(lines) == {f"[{rank}] {str(rank) * 100}" for rank in range(3)}


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_submit_status_logs_list_cancel(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    program = ["python", str(PROGRAM), "--shared", str(tmp_path / "shared"), "--steps", "10000"]
    submitted = launcher(
        "submit", "-np", "2", *JOB, "--name", "mine", "--", *program, where=tmp_path
    )
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.split()[0]
    assert run.startswith("mine-")
    for command in (f"status {run} --watch", f"logs {run} --follow", f"cancel {run}"):
        assert f"  launcher {command}\n" in submitted.stdout
    try:
        follow = subprocess.Popen(
            [sys.executable, "-m", "launcher", "logs", run, "--follow", "--rank", "1"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert follow.stdout is not None
        assert follow.stdout.readline() == "[1] starts at step 0\n"
        assert follow.stdout.readline() == "[1] step 1\n"
        state = json.loads(launcher("status", run, "--json", where=tmp_path).stdout)
        assert state["state"] == "running"
        assert {row["host"] for row in state["ranks"].values()} == {"localhost"}
        listed_line = launcher("list", where=tmp_path, COLUMNS="40").stdout.splitlines()[-1]
        assert re.fullmatch(rf"{run} +running +\S+ \S+ +\S+ s +2 +0 *", listed_line), "not cut"
        status = launcher("status", "mine", where=tmp_path, COLUMNS="40").stdout
        assert re.match(rf"{run} · running · .* · restarts 0 of 3", status), "not wrapped"
    finally:
        cancelled = launcher("cancel", run, where=tmp_path)
    assert cancelled.stdout == f"{run}: stopped\n"
    rest, _ = follow.communicate(timeout=20)
    assert follow.returncode == 0
    assert re.fullmatch(r"(\[1\] step \d+\n)+", rest)
    listed = json.loads(launcher("list", "--json", where=tmp_path).stdout)
    assert (listed["id"], listed["state"], listed["exit_code"]) == (run, "stopped", 143)
    assert launcher("status", where=tmp_path).returncode == 143
    again = launcher("cancel", run, where=tmp_path)
    assert again.stdout == f"{run}: stopped; no process is left\n"
    assert launcher("logs", run, "--rank", "7", where=tmp_path).returncode == 2


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_submit_waits_for_the_job_and_watching_prints_a_line_per_change(
    tmp_path: Path,
) -> None:
    words = ["submit", "--wait", *JOB, "--max-restarts", "0", "--", "python", "-c"]
    waited = launcher(*words, "import time; time.sleep(1.5); raise SystemExit(3)", where=tmp_path)
    assert waited.returncode == 1, waited.stderr
    lines = waited.stdout.splitlines()
    run = lines[0].split()[0]
    assert f"{run}: running, restarts: 0" in lines
    assert re.match(rf"{run} · failed", lines[lines.index(f"{run}: running, restarts: 0") + 1])
    watched = launcher("status", "--watch", "--json", where=tmp_path)
    assert (watched.returncode, json.loads(watched.stdout)["state"]) == (1, "failed")
    refused = launcher("logs", "--worker", "1", where=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("launcher: --worker: expected none")


@pytest.mark.timeout(60)
def test_cancel_now_of_a_job_that_is_ending(tmp_path: Path) -> None:
    """The launcher is gone before the second signal, which is to end it at once."""
    record = RunWriter.create(build_spec({"command": ["a"], "output": tmp_path / "runs"}))
    record.close()
    ending = subprocess.Popen(["sleep", "60"])
    reaper = threading.Thread(target=ending.wait)
    reaper.start()
    identity = asdict(ProcessIdentity.of(ending.pid))
    (record.directory / "launcher.json").write_text(json.dumps(identity))
    cancelled = launcher("cancel", "--now", where=tmp_path)
    ending.kill()
    reaper.join()
    assert cancelled.stderr == ""
    assert cancelled.stdout == f"{record.id}: lost\n"
    assert cancelled.returncode == 0


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_oversubscribe_permits_more_than_eight_ranks_per_core(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # as on a machine of one core, where 16 may be
    try:
        program = ["--", "python", "-S", "-c", "pass"]
        refused = launcher("run", "-np", "17", *JOB, *program, where=tmp_path)
        done = launcher("run", "-np", "17", *JOB, "--oversubscribe", *program, where=tmp_path)
    finally:
        os.sched_setaffinity(0, cores)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "expected at most 16 on this machine (1 core). Received: 17" in refused.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_a_submitted_job_that_cannot_start_says_so(tmp_path: Path) -> None:
    done = launcher("submit", *JOB, "-o", "/proc/runs", "--", "true", where=tmp_path)
    assert done.returncode == 1
    assert "choose another directory with --output" in done.stderr


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_on_a_terminal_there_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    shown, terminal = pty.openpty()
    command = [sys.executable, "-m", "launcher", "run", "-np", "2", *JOB, "--metrics-port", "9400"]
    # Long enough for a launcher that a busy machine lets draw only now and then.
    command += ["--", "python", str(PROGRAM), "--shared", str(tmp_path / "shared"), "--steps", "80"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    printed = b""
    limit = time.monotonic() + 40
    while time.monotonic() < limit:
        try:
            data = os.read(shown, 65536)
        except OSError:  # the other side is closed: the launcher has ended
            break
        printed += data
    os.close(shown)
    assert process.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode())
    assert re.search(r"· running · .* · restarts 0 of 3", text), text
    assert re.search(r"0 +localhost +training +\d+ +100 +0\.\d{4}", text), text
    assert "[1] step 7" in text
    assert text.rindex("· succeeded ·") < text.rindex("launcher: succeeded after")
