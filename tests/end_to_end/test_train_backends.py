"""One run on every backend ends with the same weights; and what happens without memory."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from syncbn import native
from tests.end_to_end.test_train import TRAIN, _fingerprints, _summary, _weights
from tests.processes import Launcher

pytestmark = pytest.mark.slow

# 1,437 samples in global batches of 72: twenty steps, the last one uneven.
TWENTY_STEPS = ["--epochs", "1", "--batch-size", "36", "--optimizer", "sgd", "--deterministic"]
TWENTY_STEPS += ["--learning-rate", "0.01", "--warmup-epochs", "0"]
# What two ranks at 0.01 each do together.
ONE_RANK = ("--learning-rate", "0.02")


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_twenty_steps_end_alike_on_all_backends(
    mpirun: Launcher,
    horovodrun: Launcher,
    tf_cluster: Launcher,
    single_process: Launcher,
    tmp_path: Path,
) -> None:
    def arguments(name: str, *more: str) -> list[str]:
        return [*TWENTY_STEPS, "--output", str(tmp_path / name), *more]

    trained = mpirun(2, TRAIN, arguments("mpi", "--backend", "mpi")).check()
    over_gloo = arguments("horovod", "--backend", "horovod")
    by_messages = horovodrun(2, TRAIN, over_gloo, options=["--gloo"]).check()
    tf_cluster(2, TRAIN, arguments("cluster", "--backend", "tf")).check()
    single_process(1, TRAIN, arguments("mirrored", "--backend", "tf", "--replicas", "2")).check()
    single_process(1, TRAIN, arguments("alone", "--batch-size", "72", *ONE_RANK)).check()

    reference = _weights(tmp_path / "mpi")
    assert _summary(tmp_path / "mpi")["steps"] == 20
    assert _summary(tmp_path / "mpi")["kernels"] == asdict(native.status())
    assert native.status().brief in trained.stdout[0].splitlines()[0]
    if native.kernels() is not None:
        assert "sums over direct exchange" in by_messages.stdout[0].splitlines()[0]
    for name in ("horovod", "cluster", "mirrored", "alone"):
        summary = _summary(tmp_path / name)
        assert summary["world_size"] == (1 if name == "alone" else 2)
        assert abs(summary["accuracy"] - _summary(tmp_path / "mpi")["accuracy"]) < 0.01
        np.testing.assert_allclose(_weights(tmp_path / name), reference, atol=1e-5, err_msg=name)
    assert _summary(tmp_path / "mirrored")["backend"] == "tf"


LIMITED = """
import os, sys
if "1" in (os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("HOROVOD_RANK")):
    # TensorFlow's own limit on what this rank may allocate, in MiB.
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "1"
    os.environ["TF_CPU_BFC_MEM_LIMIT_IN_MB"] = os.environ["MEBIBYTES"]
    # Its oneDNN kernels do not look whether they got their memory, and crash.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
from launcher.train.__main__ import main
main()
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
def test_a_rank_without_memory_is_named_on_all_and_pieces_fit(
    mpirun: Launcher, horovodrun: Launcher, script: Callable[[str], Path], tmp_path: Path
) -> None:
    program = script(LIMITED)
    # TensorFlow waits ten seconds for memory. Meanwhile Horovod's thread need not be quick.
    little = {"MEBIBYTES": "16", "HOROVOD_CYCLE_TIME": "5"}
    many = ["--epochs", "1", "--model", "cnn", "--batch-size", "512"]
    stopping = [*many, "--output", str(tmp_path / "stopped")]
    stopped = horovodrun(2, program, stopping, environment=little, options=["--gloo"])
    assert stopped.returncode == 1
    assert stopped.orphans == ()
    for rank in (0, 1):
        for text in (stopped.stderr[rank], _log(tmp_path / "stopped", rank)):
            assert "rank 1 ran out of memory for a" in text
            assert "tensor of shape [512," in text
            assert "with 512 rows at a time" in text
            assert "--on-oom shrink" in text
        assert "Traceback" not in stopped.stderr[rank]

    # Half such a batch fits with a third to spare. (Of a convolution not even a row does always:
    # each of its gradients wants 6 MiB in one piece, however few the rows.)
    more = ["--epochs", "1", "--model", "dnn", "--batch-size", "2800", "--on-oom", "shrink"]
    result = mpirun(
        2, program, [*more, "--output", str(tmp_path / "shrunk")], environment=little
    ).check()
    summary = _summary(tmp_path / "shrunk")
    assert summary["micro_batches"] > 1
    assert "rank 1 ran out of memory" in summary["notes"][-1]
    assert f"computed in {summary['micro_batches']} micro-batches" in result.stdout[0]
    assert summary["steps"] == 1
    first, second = _fingerprints(tmp_path / "shrunk")
    assert first == second


def _log(output: Path, rank: int) -> str:
    return (output / "logs" / f"rank-{rank}.log").read_text()


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_an_attempt_after_running_out_of_memory_starts_with_pieces(
    single_process: Launcher, tmp_path: Path
) -> None:
    note = {"rank": 0, "message": "", "micro_batches": 2, "time": 0.0}
    (tmp_path / "out-of-memory.json").write_text(json.dumps(note))
    arguments = ["--epochs", "1", "--model", "dnn", "--on-oom", "shrink", "--output", str(tmp_path)]
    single_process(1, TRAIN, arguments).check()
    assert _summary(tmp_path)["micro_batches"] == 4
