"""Collectives of the tf backend leave no threads behind, and no rank waits forever for a peer."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Launcher

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

PROGRAM = """
import json, os, signal, sys, time
import tensorflow as tf
import syncbn
from syncbn.communicators import distribute
from syncbn.communicators.watchdog import Watchdog

fault = sys.argv[1]
if fault == "stays away":
    distribute._watchdog = Watchdog(seconds=2.0)
communicator = syncbn.init("tf")
small, large = tf.ones([8]), tf.ones([20000])  # gathered, and reduced in a ring

def step():
    return [communicator.all_reduce(small, "small"), communicator.all_reduce(large, "large")]

def threads():
    return len(os.listdir("/proc/self/task"))

in_graph = tf.function(step)
in_graph(), step()
before = threads()
if fault == "dies":
    for _ in range(150):
        in_graph()
    for _ in range(50):
        step()
after = threads()
print(json.dumps({"before": before, "after": after}), flush=True)

if communicator.rank == 1:
    time.sleep(1.0)  # rank 0 may still be receiving its part of the last sum
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(4.0)  # stays away
started = time.monotonic()
try:
    in_graph()
except tf.errors.OpError as error:
    ended = {"seconds": time.monotonic() - started, "kind": type(error).__name__}
    print(json.dumps(ended | {"text": str(error), "again": threads()}), flush=True)
    os._exit(3)
"""


def test_no_thread_is_left_and_every_wait_ends(
    tf_cluster: Launcher, script: Callable[[str], Path]
) -> None:
    program = script(PROGRAM)
    jobs = {
        fault: tf_cluster.start(2, program, [fault])
        for fault in ("dies", "is stopped", "stays away")
    }
    answers = {}
    for fault, job in jobs.items():
        assert job.processes[0].wait(60) == 3, job.wait(0).transcript()
        job.send_signal(signal.SIGCONT)
        job.kill()
        lines = [line for line in job.stdout()[0].splitlines() if line.startswith("{")]
        answers[fault] = [json.loads(line) for line in lines]

    # 400 collectives: with TensorFlow's own limit there would be 800 more threads.
    counted, ended = answers["dies"]
    assert counted["after"] <= counted["before"] + 8
    assert ended["kind"] == "UnavailableError"
    assert ended["seconds"] < 10
    # TensorFlow's heartbeats take ten seconds.
    assert answers["is stopped"][1]["kind"] == "UnavailableError"
    assert answers["is stopped"][1]["seconds"] < 40
    ended = answers["stays away"][1]
    assert ended["kind"] == "DeadlineExceededError"
    assert ended["seconds"] >= 2
    assert "has waited for 2 s in a collective that another rank has not called" in ended["text"]
