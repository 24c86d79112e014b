"""The life of a job on a real Slurm: submit, status, logs, list, cancel, and how it fails."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from launcher.runs.reader import read_journal
from tests.requirements import require_horovod
from tests.slurm.cluster import Cluster, lacks_cgroups
from tests.slurm.jobs import QUICK, Jobs, training
from tests.waiting import until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SLURM = ("--target", "slurm")

# Takes the port of Horovod's rendezvous, the one after that of the job.
HOLDER = """
import os, socket, time
port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 4000 * 3 + 1
held = socket.socket()
held.bind(("127.0.0.1", port))
held.listen()
time.sleep(25)
"""


@pytest.mark.parametrize("backend", ["mpi", "horovod", "tf"])
def test_two_nodes_train_together(jobs: Jobs, backend: str) -> None:
    if backend == "horovod":
        require_horovod()
    words = ["submit", *SLURM, "-np", "2", "--name", "digits", "--backend", backend, *QUICK]
    done = jobs(*words, "--cpus", "1", "--wait", "--", *training(epochs=4))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits (Slurm job " in done.stdout
    assert "succeeded" in done.stdout
    found = jobs.status("digits")
    assert (found["state"], found["exit_code"], found["cause"]) == ("succeeded", 0, None)
    assert found["slurm"]["node_list"] == "127.0.0.[1-2]"
    assert {rank["state"] for rank in found["run"]["ranks"].values()} == {"done"}
    lines = jobs("logs", "digits", "--rank", "0", *SLURM).stdout.splitlines()
    assert f"2 ranks over {backend}" in lines[0]
    assert any("test accuracy" in line for line in lines)
    assert all(line.startswith("[0]") for line in lines)


def test_a_partition_that_does_not_exist_is_one_clear_line(jobs: Jobs) -> None:
    done = jobs("submit", *SLURM, "--partition", "nosuch", "--", "true")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "launcher: slurm.partition: Slurm refuses the job: invalid partition specified: nosuch; "
        "Batch job submission failed: Invalid partition name specified; the partitions: "
        "sinfo --summarize"
    ]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--constraint", "nosuch"), "slurm.constraint"),
        (("--memory", "99GiB"), "resources.memory"),
        (("--gpus", "1"), "resources.gpus"),
        (("--dependency", "afterok:x"), "slurm.dependency"),
    ],
    ids=str,
)
def test_what_slurm_refuses_names_the_field(jobs: Jobs, flags: tuple[str, ...], field: str) -> None:
    done = jobs("submit", *SLURM, *flags, "--", "true")
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith(f"launcher: {field}: Slurm refuses the job: "), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_waiting_job_is_submitted_once_listed_and_cancelled(jobs: Jobs) -> None:
    later = ("--sbatch", "--begin=now+1hour")
    number = jobs.submit("later", *later)
    assert jobs.submit("later", *later) == number
    other = jobs("submit", *SLURM, "--name", "later", *later, "--", "false")
    assert other.returncode == 2
    assert f"another job 'later' is queued (Slurm job {number})" in other.stderr
    found = jobs.status("later")
    assert (found["state"], found["exit_code"]) == ("queued", 0)
    listed = jobs("list", *SLURM).stdout
    assert "waits for its start time" in listed
    rows = map(json.loads, jobs("list", "--json", *SLURM).stdout.splitlines())
    assert [row["id"] for row in rows if row["name"] == "later"][-1:] == [number]
    none = jobs("logs", "later", *SLURM)
    assert none.returncode == 1
    assert "queued" in none.stderr
    assert jobs("cancel", "later", *SLURM).stdout == "later: cancelled\n"
    assert jobs.wait("later") == 143
    assert jobs("cancel", "later", *SLURM).stdout == "later: stopped already\n"


def test_cancel_lets_the_ranks_save_and_logs_follow_to_the_end(jobs: Jobs) -> None:
    number = jobs.submit("long", program=training(epochs=500))
    followed = jobs.start("logs", str(number), "--follow", *SLURM)
    waiting = jobs.start("status", "long", "--watch", *SLURM)
    jobs.trains("long", number)
    assert jobs("cancel", "long", *SLURM).stdout == "long: stopped\n"
    assert waiting.wait(30) == 143
    text, _ = followed.communicate(timeout=30)
    assert followed.returncode == 0
    assert "the state is saved" in text
    assert text.splitlines() == jobs.log("long", number).splitlines()
    assert jobs.weights("long", number)
    assert not jobs.processes("launcher.train")


@pytest.mark.parametrize("backend", ["mpi", "horovod", "tf"])
def test_scancel_lets_the_ranks_save(jobs: Jobs, backend: str) -> None:
    if backend == "horovod":
        require_horovod()
    number = jobs.submit("plain", "--backend", backend, program=training(epochs=500))
    jobs.trains("plain", number)
    jobs.cluster("scancel", str(number))
    assert jobs.wait("plain") == 143
    assert jobs.log("plain", number).count("the state is saved") == 1
    assert jobs.status("plain")["slurm"]["state"] == "CANCELLED"
    assert jobs.weights("plain", number)


def test_the_metrics_of_the_job_are_served_and_discovered(jobs: Jobs) -> None:
    number = jobs.submit("measured", "--metrics-port", "0", program=training(epochs=500))
    jobs.trains("measured", number)
    (file,) = (jobs.output / "targets").glob("*.json")
    assert file.name == f"measured-{number}.json"
    (target,) = json.loads(file.read_text())
    host, _, port = target["targets"][0].rpartition(":")
    assert host == socket.gethostname()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"training_loss" in answer.read()
    assert jobs("cancel", "measured", *SLURM).returncode == 0
    assert not file.exists()


def test_cancel_now_does_not_wait(jobs: Jobs) -> None:
    number = jobs.submit("long", program=training(epochs=500))
    jobs.trains("long", number)
    assert jobs("cancel", "long", "--now", *SLURM).returncode == 0
    until(lambda: jobs.status("long")["state"] == "stopped", 15)
    until(lambda: not jobs.processes("launcher.train"), 5)
    assert "saved" not in jobs.log("long", number)


def test_a_killed_rank_restarts_with_all_others(jobs: Jobs) -> None:
    number = jobs.submit("killed", "--backend", "mpi", program=training(epochs=40))
    until(lambda: (jobs.status("killed")["run"] or {}).get("checkpoint") is not None, 60)
    ranks = [one for one in jobs.processes("launcher.train") if "join" not in one.cmdline()]
    assert len(ranks) == 2
    ranks[0].send_signal(signal.SIGKILL)
    assert jobs.wait("killed") == 0
    found = jobs.status("killed")
    assert (found["run"]["attempt"], found["slurm"]["restarts"]) == (1, 0)
    log = jobs.log("killed", number)
    assert "was killed by SIGKILL" in log
    assert "resumes from" in log


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (7, 1)])
def test_a_failed_job_has_its_cause(jobs: Jobs, code: int, expected: int) -> None:
    program = ["python", "-c", f"import sys; print('told'); sys.exit({code})"]
    jobs.submit("failing", "--max-restarts", "0", program=program)
    assert jobs.wait("failing") == expected
    found = jobs.status("failing")
    assert found["state"] == "failed"
    assert found["cause"]["class"] == ("bad config" if code == 2 else "error")
    assert found["cause"]["exit_code"] == code


def test_a_job_whose_dependency_fails_never_waits_forever(jobs: Jobs) -> None:
    number = jobs.submit("first", "--max-restarts", "0", program=["false"])
    words = ["submit", *SLURM, "--name", "second", "--dependency", f"afterok:{number}", *QUICK]
    done = jobs(*words, "--wait", "--", "true")
    assert done.returncode == 2, done.stdout
    assert "the job it depends on has failed" in done.stdout


@pytest.mark.parametrize(
    "flags", [("--time", "7-00:00:00"), ("-np", "9"), ("--cpus", "99")], ids=" ".join
)
def test_waiting_for_what_never_starts_ends(jobs: Jobs, flags: tuple[str, ...]) -> None:
    words = ["submit", *SLURM, "--name", "huge", *flags, "--wait", "--", "true"]
    done = jobs(*words, seconds=30)
    assert done.returncode == 2, done.stdout
    # Which reason Slurm gives first, that of the limit or PartitionConfig, varies.
    assert "bad config: never starts: it requests more " in done.stdout
    assert jobs("cancel", "huge", *SLURM).stdout == "huge: cancelled\n"


def test_a_drained_node_finishes_its_job_and_the_next_one_waits(
    jobs: Jobs, cluster: Cluster
) -> None:
    number = jobs.submit("first", program=training(epochs=20))
    jobs.trains("first", number)
    drain = ("scontrol", "update", f"nodename={cluster.nodes[1]}", "state=drain", "reason=test")
    cluster(*drain)
    try:
        jobs.submit("second", program=training(epochs=1))
        assert jobs.wait("first") == 0
        waits = "waits: nodes are drained, down or reserved"
        until(lambda: waits in jobs("status", "second", *SLURM).stdout, 20)
    finally:
        cluster("scontrol", "update", f"nodename={cluster.nodes[1]}", "state=resume")
    assert jobs.wait("second") == 0


def test_a_job_outlives_a_restart_of_the_controller(jobs: Jobs, cluster: Cluster) -> None:
    number = jobs.submit("steady", program=training(epochs=60))
    waiting = jobs.start("status", "steady", "--watch", *SLURM)
    jobs.trains("steady", number)
    cluster.stop_controller()
    gone = jobs("status", "steady", *SLURM)
    assert gone.returncode == 1
    assert "Slurm's controller does not answer" in gone.stderr
    cluster.start_controller()
    assert waiting.wait(90) == 0
    journal = list(read_journal(jobs.output / f"steady-{number}"))
    assert [event["event"] for event in journal].count("started") == 1


def test_a_rank_that_exceeds_its_memory_is_named(jobs: Jobs) -> None:
    hog = "import time; kept = bytearray(600 << 20); time.sleep(60)"
    flags = ("--memory", "300MiB", "--max-restarts", "0", "--backend", "mpi")
    jobs.submit("hungry", *flags, program=["python", "-c", hog])
    assert jobs.wait("hungry") == 1
    assert jobs.status("hungry")["cause"]["class"] == "oom"


def test_what_exceeds_the_memory_of_the_job_is_named(jobs: Jobs) -> None:
    if (missing := lacks_cgroups()) is not None:
        pytest.skip(missing)
    hog = "import time; kept = bytearray(900 << 20); time.sleep(60)"
    jobs.submit(
        "hungry", "--sbatch", "--mem=500M", "--max-restarts", "0", program=["python", "-c", hog]
    )
    assert jobs.wait("hungry") == 1
    cause = jobs.status("hungry")["cause"]
    assert (cause["class"], cause["exit_code"]) == ("oom", 137)


def test_the_script_runs_by_plain_sbatch(jobs: Jobs) -> None:
    words = ["render", *SLURM, "-np", "2", "--name", "mine", *QUICK, "--", *training(epochs=1)]
    jobs.output.mkdir()
    script = jobs.directory / "mine.sh"
    script.write_text(jobs(*words).stdout)
    number = jobs.cluster("sbatch", "--parsable", "--wait", str(script)).split()[0]
    assert "succeeded after" in jobs.log("mine", int(number))


def test_without_slurm_the_missing_package_is_named(jobs: Jobs) -> None:
    environment = {**jobs._environment(), "PATH": "/nowhere"}
    done = subprocess.run(
        jobs._command(["list", *SLURM]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "squeue is not installed" in done.stderr


def test_a_leader_that_cannot_start_ends_the_job_at_once(jobs: Jobs) -> None:
    # The port of the job is taken on the first node only.
    taken = f'[ "$SLURM_NODEID" = 0 ] && {sys.executable} hold.py & sleep 2'
    (jobs.directory / "hold.py").write_text(HOLDER)
    number = jobs.submit("nowhere", "--backend", "horovod", "--setup", taken)
    assert jobs.wait("nowhere", seconds=60) == 2
    assert "cannot be used" in jobs.log("nowhere", number)
    assert jobs.status("nowhere")["slurm"]["restarts"] == 0
