"""The verbs as a user types them, on real runs."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest

from launcher.runs.processes import ProcessIdentity
from launcher.runs.writer import RunWriter
from launcher.spec import JobSpec, Metrics, build_spec
from launcher.train.config import TrainConfig
from tests.launcher.launches import PROGRAM, Launch
from tests.processes import REPOSITORY

JOB = ("--backend", "local")


def launcher(
    *arguments: str, where: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=where or REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_no_heavy_modules() -> None:
    source = (
        "import sys; sys.argv = ['launcher', '--help']\n"
        "from launcher.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'keras', 'kubernetes', 'horovod', 'pydantic', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("run", "submit", "render", "status", "logs", "list", "cancel", "doctor"):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("module", ["launcher", "launcher.train"])
def test_the_version_is_printed_without_importing_tensorflow(module: str) -> None:
    source = (
        f"import sys, runpy; sys.argv = ['{module}', '--version']\n"
        f"try:\n    runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    print(end.code or 0, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    own = metadata.version("syncbn")
    assert re.fullmatch(rf"syncbn {own} \(python .*, keras [\d.]+\)\n0 False\n", done.stdout)


def test_the_help_of_the_trainer_shows_every_default() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.train", "--help"],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dict(re.findall(r"--([a-z-]+) .*\[default: (.*?)\]", done.stdout))
    for name, field in TrainConfig.model_fields.items():
        flag = name.replace("_", "-")
        if field.annotation is bool:
            assert shown[flag] == (flag if field.default else f"no-{flag}")
        elif field.default is not None:
            value = field.default
            assert shown[flag] == (f"{value:g}" if isinstance(value, float) else str(value))


def test_the_help_of_a_job_shows_the_defaults_of_its_fields() -> None:
    done = launcher("run", "--help", COLUMNS="200")
    shown = dict(re.findall(r"--([a-z-]+) .*\[default: (.*?)\]", done.stdout))
    spec = JobSpec(command=("a",))
    fields = {**dict(spec), **dict(spec.restart), **dict(spec.resources)}
    fields |= {
        "slots": spec.container.slots,
        "metrics_host": Metrics().address,
        "kind": spec.kubernetes.kind,
    }
    for flag in (
        "max-restarts",
        "backoff",
        "hang-timeout",
        "exit-timeout",
        "grace",
        "kind",
        "save-timeout",
        "silence-timeout",
        "output",
        "binding",
        "metrics-host",
        "slots",
    ):
        value = fields[flag.replace("-", "_")]
        assert shown[flag] == (f"{value:g}" if isinstance(value, float) else str(value))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "no command"),
        (["run", "-np", "0", "--", "true"], "ranks: expected at least 1, as in ranks = 2"),
        (["run", "-np", "1000", "--", "true"], "start them anyway: --oversubscribe"),
        (["run", "--hosts", "a", "--ssh", "'", "--", "true"], "--ssh: expected a command such as"),
        (["run", "-np", "two", "--", "true"], "ranks: expected a whole number"),
        (["run", "--backend", "smoke", "--", "true"], "backend: "),
        (["run", "--quiet", "--json", "--", "true"], "expected --quiet or --json"),
        (["run", "--hosts", "a", "--hostfile", "b", "--", "true"], "--hosts or --hostfile"),
        (["run", "--config", "none.toml", "--", "true"], "none.toml: No such file"),
        (["run", "--env", "NO_SUCH_VARIABLE", "--", "true"], "--env NO_SUCH_VARIABLE"),
        (["run", "--restart-codes", "x", "--", "true"], "--restart-codes"),
        (["run", "--memory", "much", "--", "true"], "resources.memory"),
        (["status", "none", "-o", "/nowhere"], "no run starts with 'none'"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_a_one_line_error_with_code_2(arguments: list[str], said: str) -> None:
    done = launcher(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_render_runs_nothing(tmp_path: Path) -> None:
    job = ["--hosts", "h1:2,h2:1", "--backend", "horovod", "--env", "API_TOKEN=hush"]
    done = launcher("render", *job, "--", "touch", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made").exists()
    assert done.stdout.count(f"touch {tmp_path}/made") == 3
    assert "# rank 2 on h2" in done.stdout
    for line in ("HOROVOD_CROSS_RANK=1", "HOROVOD_LOCAL_SIZE=2", "HOROVOD_SIZE=3"):
        assert line in done.stdout
    assert "hush" not in done.stdout
    assert "API_TOKEN='(not shown)'" in done.stdout


def test_render_for_mpi_is_a_shell_command() -> None:
    done = launcher(
        "render", "-np", "4", "--hosts", "h1:4,h2:4", "--backend", "mpi", "--", "a", "b c"
    )
    assert re.search(r"mpirun -np 4 .*--host h1:4 .* a 'b c'$", done.stdout.strip())


def test_flags_override_a_toml_file(tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text(
        'command = ["python", "x.py"]\nranks = 3\nbackend = "local"\n[restart]\nmax_restarts = 9\n'
    )
    done = launcher("render", "--config", str(config), "--backoff", "7", "-np", "2", "--json")
    spec = json.loads(done.stdout)
    assert (spec["ranks"], spec["restart"]["max_restarts"], spec["restart"]["backoff"]) == (2, 9, 7)
    config.write_text('command = ["x"]\nranks = 2\ncolour = "red"\n')
    done = launcher("render", "--config", str(config))
    assert (done.returncode, "colour: no such field of a job" in done.stderr) == (2, True)


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
    assert again.stdout == f"{run}: stopped; nothing of it is left\n"
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
