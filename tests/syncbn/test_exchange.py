"""Sums by direct messages between the ranks of Horovod over Gloo, and their failures."""

import json
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from syncbn import native
from tests.processes import Launcher
from tests.requirements import require_horovod
from tests.syncbn.gloo import gloo_ranks

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]


@pytest.fixture(autouse=True)
def _needs() -> None:
    require_horovod()
    if native.kernels() is None:
        pytest.skip(f"the kernels are not to be had here: {native.status().reason}")


@pytest.mark.parametrize(
    ("size", "modes"),
    [(2, ["", "tcp", "0"]), (3, ["", "tcp"]), (4, ["", "tcp"]), (7, [""])],
)
def test_sums_are_right_and_equal_in_bits(
    single_process: Launcher, size: int, modes: list[str]
) -> None:
    program = "tests.syncbn.exchange_program"
    answers = {}
    for mode in modes:
        environment = {"PYTHONHASHSEED": "0", "SYNCBN_EXCHANGE": mode}
        with gloo_ranks(single_process, size, program, environment=environment) as jobs:
            found = answers[mode] = [job.wait(140).json()[0] for job in jobs]
        by = "horovod" if mode == "0" else "direct exchange"
        assert {answer["transport"] for answer in found} == {by}
        assert max(answer["error"] for answer in found) < 1e-15
        if mode != "0":
            assert len({tuple(answer["bits"]) for answer in found}) == 1
            assert {answer["denormal"] for answer in found} == {size}
    if "tcp" in modes:
        # The transport does not change the order of additions.
        assert answers[""][0]["bits"] == answers["tcp"][0]["bits"]


PROGRAM = """
import json, os, signal, sys, time
import tensorflow as tf
import syncbn

fault = sys.argv[1]
communicator = syncbn.init("horovod")
last = communicator.size - 1

@tf.function
def step(values):
    for index in range(20):
        values = communicator.all_reduce(values, f"sum {index}")
    return values

for _ in range(20):
    step(tf.zeros([1026], tf.float64))
print(json.dumps("started"), flush=True)
if communicator.rank == last:
    time.sleep(1.0)  # the others wait asleep, or between two messages
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
count = 3 if fault == "sends another sum" and communicator.rank == last else 1026
dtype = tf.float32 if fault == "sends another dtype" and communicator.rank == last else tf.float64
started = time.monotonic()
try:
    communicator.all_reduce(tf.zeros([count], dtype), "last")
except tf.errors.OpError as error:
    ended = {"seconds": time.monotonic() - started, "kind": type(error).__name__}
    print(json.dumps(ended | {"text": str(error)}), flush=True)
    os._exit(3)
"""

FAULTS = {
    "dies": "Connection closed by peer: rank 2 has ended",
    "is stopped": "heartbeat timeout: rank 2 is stopped, or its connection is cut",
    "sends another sum": "every rank must send the same number",
    "sends another dtype": "every rank must send the same number",
}


@pytest.mark.parametrize("mode", ["", "tcp"], ids=["memory", "tcp"])
def test_a_failure_of_a_rank_ends_all_others(
    single_process: Launcher, script: Callable[[str], Path], mode: str
) -> None:
    program = script(PROGRAM)
    limits = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "6", "SYNCBN_EXCHANGE": mode}
    answers: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        started = {
            fault: stack.enter_context(
                gloo_ranks(single_process, 3, program, [fault], environment=limits)
            )
            for fault in FAULTS
        }
        for fault, jobs in started.items():
            for job in jobs[:2]:
                assert job.processes[0].wait(120) == 3, job.wait(0).transcript()
            for job in jobs:
                job.send_signal(signal.SIGCONT)
            answers[fault] = [json.loads(job.stdout()[0].splitlines()[-1]) for job in jobs[:2]]
    for fault, ranks in answers.items():
        for rank, ended in enumerate(ranks):
            assert ended["kind"] == "UnknownError", fault
            assert "HorovodAllreduce failed" in ended["text"], fault
            assert FAULTS[fault] in ended["text"], (fault, rank, ended["text"])
            # Closed connections are noticed at once, silence after Gloo's time limit.
            assert ended["seconds"] < (20 if fault == "is stopped" else 6)


def test_a_rank_without_the_kernels_makes_all_use_horovod(
    single_process: Launcher, script: Callable[[str], Path]
) -> None:
    program = script(
        "import json, os\n"
        "if os.environ['HOROVOD_RANK'] == '1': os.environ['SYNCBN_NATIVE'] = '0'\n"
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "import syncbn, tensorflow as tf\n"
        "world = syncbn.init('horovod')\n"
        "total = world.all_reduce(tf.ones([2]), 'sum').numpy().tolist()\n"
        "print(json.dumps([world.transport, total]))\n"
    )
    with gloo_ranks(single_process, 2, program) as jobs:
        results = [job.wait(100).check() for job in jobs]
    for result in results:
        assert result.json() == [["horovod", [2.0, 2.0]]]
        assert "by Horovod over Gloo: rank 1: SYNCBN_NATIVE=0 is set" in result.stderr[0]


ELASTIC = """
import json, os, sys
if os.environ["HOROVOD_HOSTNAME"] in sys.argv[1:]: os.environ["SYNCBN_NATIVE"] = "0"
import syncbn, tensorflow as tf
world = syncbn.init("horovod")
try:
    found = [world.all_reduce(tf.ones([n]), f"sum {n}").numpy()[0].item() for n in (600000, 2)]
except (tf.errors.OpError, syncbn.errors.WorldError) as error:
    found = str(error)
print(json.dumps(found), flush=True)
"""


@pytest.mark.parametrize("without", [["127.0.0.1"], ["127.0.0.1", "localhost"], []])
def test_ranks_of_an_elastic_job_that_differ_end_with_an_error(
    horovodrun: Launcher, script: Callable[[str], Path], tmp_path: Path, without: list[str]
) -> None:
    """They cannot agree at the start, when other ranks may already be training."""
    discover = tmp_path / "discover.sh"
    discover.write_text("#!/bin/sh\necho localhost:1; echo 127.0.0.1:1\n")
    discover.chmod(0o755)
    options = ["--gloo", "--min-np", "2", "--max-np", "2"]
    options += ["--host-discovery-script", str(discover)]
    for found in horovodrun(2, script(ELASTIC), without, options=options).json():
        if len(without) == 1:
            assert "cannot take part (SYNCBN_NATIVE=0 is set), but other ranks can" in found
            # By this word an elastic program would take it for a lost rank, and try again.
            assert "orovod" not in found
        else:
            assert found == [2.0, 2.0]
