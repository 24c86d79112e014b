"""What is kept of a run, and that it can be read whatever happened to its writer."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.atomic import replace_json
from launcher.errors import LauncherError, UnknownRunError
from launcher.runs.events import Event
from launcher.runs.layout import log_path, run_directories
from launcher.runs.logs import RankLog
from launcher.runs.processes import ProcessIdentity
from launcher.runs.reader import find_run, launcher_of, read_journal, read_run
from launcher.runs.writer import RunWriter
from launcher.spec import JobSpec, build_spec
from launcher.spec.secrets import is_secret


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    secret = {"API_TOKEN": "hush", "PLAIN": "seen"}
    fields = {"command": ["a"], "ranks": 2, "output": tmp_path / "runs", "environment": secret}
    return build_spec(fields)


def begin(record: RunWriter, spec: JobSpec, attempt: int = 0) -> None:
    details = {"id": record.id, "directory": str(record.directory), "ranks": spec.ranks}
    record(Event("run", details=details | {"backend": "local", "command": ["a"]}))
    record(Event("started", attempt, details={"hosts": ["localhost"] * spec.ranks}))


def test_a_run_is_read_from_its_journal(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    begin(record, spec)
    record(Event("rank_up", rank=0, details={"pid": 1, "started": 2.0, "host": "localhost"}))
    record(Event("beat", rank=0, details={"phase": "training", "step": 3, "loss": 0.5}))
    record(Event("checkpoint", rank=0, details={"step": 3}))
    run = read_run(record.directory)
    assert (run.state, run.attempt, run.checkpoint) == ("running", 0, 3)
    assert (run.ranks[0].state, run.ranks[0].step) == ("training", 3)
    assert run.ranks[0].numbers == {"loss": 0.5}
    assert run.ranks[1].state == "starting"
    done = {"result": "succeeded", "exit_code": 0, "seconds": 1.0, "restarts": 0}
    record(Event("done", details=done))
    record.close()
    run = read_run(record.directory)
    assert (run.state, run.exit_code, run.ended) == ("succeeded", 0, True)
    assert json.loads((record.directory / "result.json").read_text())["result"] == "succeeded"


def test_an_unwritable_journal_is_one_warning(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    record.close()
    (record.directory / "journal.jsonl").unlink()
    (record.directory / "journal.jsonl").symlink_to("/dev/full")
    record._open()
    record(Event("checkpoint", rank=0, details={"step": 3}))
    warnings = record.take_warnings()
    assert len(warnings) == 1
    assert "the journal in" in warnings[0]
    # The warning is itself an event of the journal, and must not cause another warning.
    record(Event("warning", details={"text": warnings[0]}))
    assert record.take_warnings() == []
    record.close()


def test_secrets_are_not_recorded(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    record.close()
    kept = json.loads((record.directory / "spec.json").read_text())["environment"]
    assert kept == {"API_TOKEN": "(not recorded)", "PLAIN": "seen"}


@pytest.mark.parametrize(
    "name",
    [
        *("API_KEY", "WANDB_API_KEY", "aws_secret_access_key", "DB_PASSWORD", "MYSQL_PASSWD"),
        *("HF_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_PRIVATE_KEY"),
    ],
)
def test_names_that_suggest_a_secret(name: str) -> None:
    assert is_secret(name)
    assert not is_secret("DATA")


def test_json_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    contents = [{"kept": [number] * 20_000} for number in range(2)]
    replace_json(path, contents[0])
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for content in contents:
                replace_json(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert json.loads(path.read_text()) in contents
    finally:
        over.set()
        writer.join()
    with pytest.raises(TypeError):
        replace_json(path, {"kept": object()})
    assert json.loads(path.read_text()) in contents
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]


def test_the_result_is_synced_to_disk_before_other_observers_run(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, synced = RunWriter.create(spec), []

    def sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, path.read_text().splitlines()[-1:]))

    monkeypatch.setattr(os, "fsync", sync)
    begin(record, spec)
    assert synced == [], "not for every event"
    record(Event("failed", details={"class": "error"}))
    record(Event("done", details={"result": "failed"}))
    record.close()
    assert [(name, json.loads(last)["event"]) for name, (last,) in synced] == [
        ("journal.jsonl", "failed"),
        ("journal.jsonl", "done"),
    ]


def test_a_line_truncated_by_a_crash_is_skipped(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    begin(record, spec)
    record.close()
    with open(record.directory / "journal.jsonl", "a") as journal:
        journal.write('{"time": 1, "event": "do')
    assert [event["event"] for event in read_journal(record.directory)] == ["run", "started"]


def test_steps_are_journaled_once_a_second_at_most(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    begin(record, spec)
    for step in range(50):
        beat = {"phase": "training", "step": step}
        record(Event("beat", rank=0, details=beat, time=1000.0 + step * 0.1))
    record.close()
    steps = [event["step"] for event in read_journal(record.directory) if event["event"] == "beat"]
    assert steps == [0, 10, 20, 30, 40]


def test_a_run_whose_launcher_was_killed_is_lost(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    begin(record, spec)
    record.close()
    assert launcher_of(record.directory) == ProcessIdentity.of(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = ProcessIdentity.of(process.pid)
    (record.directory / "launcher.json").write_text(
        json.dumps({"pid": identity.pid, "started": identity.started})
    )
    assert read_run(record.directory).state == "running"
    process.kill()
    process.wait()
    assert launcher_of(record.directory) is None
    assert read_run(record.directory).state == "lost"


def test_a_run_is_continued_as_a_restart(spec: JobSpec) -> None:
    first = RunWriter.create(spec, "digits-4711")
    begin(first, spec)
    first(Event("done", 0, None, {"result": "stopped", "exit_code": 143}))
    first.close()
    assert first.first_attempt == 0
    assert read_run(first.directory).state == "stopped"
    second = RunWriter.create(spec, "digits-4711")
    assert (second.directory, second.first_attempt) == (first.directory, 1)
    begin(second, spec, attempt=1)
    assert (read_run(second.directory).state, read_run(second.directory).attempt) == ("running", 1)
    second.close()


def test_a_launcher_of_another_machine_is_not_judged_by_the_processes_here(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    begin(record, spec)
    record.close()
    ended = {"pid": 2**22 - 1, "started": 1.0}
    file = record.directory / "launcher.json"
    file.write_text(json.dumps({**ended, "host": "another"}))
    assert read_run(record.directory).state == "running"
    file.write_text(json.dumps({**ended, "host": socket.gethostname()}))
    assert read_run(record.directory).state == "lost"


def test_a_reused_process_id_is_detected() -> None:
    own = ProcessIdentity.of(os.getpid())
    assert own.process() is not None
    assert ProcessIdentity(own.pid, own.started - 10.0).process() is None


def test_runs_are_found_by_a_prefix(tmp_path: Path, spec: JobSpec) -> None:
    output = tmp_path / "runs"
    with pytest.raises(UnknownRunError, match="start one: launcher run"):
        find_run(output, None)
    first = RunWriter.create(spec).directory
    time.sleep(0.02)
    second = RunWriter.create(spec.model_copy(update={"name": "other"})).directory
    assert run_directories(output) == [first, second]
    assert find_run(output, None) == second
    assert find_run(output, "job") == first
    assert find_run(output, second.name) == second
    time.sleep(0.02)
    again = RunWriter.create(spec).directory
    RunWriter.create(spec.model_copy(update={"name": "job-2"}))
    assert find_run(output, "job") == again, "a job's name means its newest run"
    assert find_run(output, first.name) == first
    assert find_run(output, "oth") == second
    for name, problem in (("none", "no run starts"), ("jo", "more than one run starts")):
        with pytest.raises(UnknownRunError, match=problem):
            find_run(output, name)


def test_an_unwritable_output_directory(spec: JobSpec) -> None:
    with pytest.raises(LauncherError, match="choose another directory with --output"):
        RunWriter.create(spec.model_copy(update={"output": Path("/proc/runs")}))


def test_logs_are_kept_per_rank_and_attempt(spec: JobSpec) -> None:
    record = RunWriter.create(spec)
    for attempt, rank in ((0, 0), (0, 1), (1, 0)):
        text = f"attempt {attempt}, rank {rank}"
        record(Event("output", attempt, rank, {"stream": "stdout", "text": text}))
    record(Event("output", 1, None, {"stream": "stderr", "text": "mpirun says"}))
    record.close()
    texts = {
        (attempt, rank): log_path(record.directory, attempt, rank).read_text()
        for attempt, rank in ((0, 0), (0, 1), (1, 0), (1, None))
    }
    assert texts[0, 1] == "attempt 0, rank 1\n"
    assert texts[1, 0] == "attempt 1, rank 0\n"
    assert texts[1, None] == "mpirun says\n"


def test_logs_are_rotated_in_whole_lines(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log", limit=1000)
    lines = [f"line {number:04}" for number in range(250)]
    for line in lines:
        assert log.write(line) is None
    log.close()
    older, newer = (tmp_path / "log.1").read_text(), (tmp_path / "log").read_text()
    assert max(len(older), len(newer)) <= 1000
    kept = (older + newer).splitlines()
    assert kept == lines[-len(kept) :]
    assert len(kept) > 100


def test_a_log_that_cannot_be_written_counts_what_it_drops(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "none" / "log")
    assert isinstance(log.write("x"), FileNotFoundError)
    assert log.dropped == 1
    (tmp_path / "none").mkdir()
    assert log.write("y") is None
    log.close()
    assert (tmp_path / "none" / "log").read_text() == "y\n"
