"""`python -m launcher.train` as users start it: under mpirun, horovodrun, TF_CONFIG, and alone."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import Launcher, python_path

TRAIN = "launcher.train"


def _summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def _fingerprints(output: Path) -> list[str]:
    """What each rank logged of all weights, moving statistics and optimizer state."""
    logs = sorted((output / "logs").glob("rank-*.log"))
    return [re.findall(r"weights ([0-9a-f]{8})", log.read_text())[-1] for log in logs]


def _weights(output: Path) -> np.ndarray:
    """All values of the last checkpoint whose type is float32, as one vector."""
    last = sorted((output / "checkpoints").glob("step-*.npz"))[-1]
    with np.load(last) as file:
        layout = json.loads(file["meta"].tobytes())["layout"]
        parts = [
            np.frombuffer(file[f"a{index:05d}"].tobytes(), np.float32)
            for index, (kind, _) in enumerate(layout)
            if kind == "float32"
        ]
    return np.concatenate(parts)


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
def test_sync_over_mpi_equals_one_process_and_local_does_not(
    mpirun: Launcher, single_process: Launcher, tmp_path: Path
) -> None:
    """One data order for all world sizes: two ranks of 16 see what one rank of 32 sees.

    1,437 samples: the last step is uneven. The rate is divided by the ranks that scale it.
    """
    common = ["--epochs", "2", "--schedule", "constant", "--model", "dnn"]
    two = [*common, "--batch-size", "16", "--learning-rate", "0.0005", "--warmup-epochs", "0"]
    began = time.time()
    for norm in ("sync", "local"):
        result = mpirun(2, TRAIN, [*two, "--norm", norm, "--output", str(tmp_path / norm)])
        assert result.check().stderr == ("", "")
        assert "\x1b" not in result.stdout[0], "escape codes where no terminal is"
        assert result.stdout[1] == ""
    one = [*common, "--batch-size", "32", "--learning-rate", "0.001", "--warmup-epochs", "0"]
    single_process(1, TRAIN, [*one, "--output", str(tmp_path / "one")]).check()

    first, second = _fingerprints(tmp_path / "sync")
    assert first == second
    alone = _weights(tmp_path / "one")
    np.testing.assert_allclose(_weights(tmp_path / "sync"), alone, rtol=2e-3, atol=2e-4)
    assert np.abs(_weights(tmp_path / "local") - alone).max() > 0.05

    summary = _summary(tmp_path / "sync")
    assert summary["accuracy"] > 0.9
    assert (summary["world_size"], summary["backend"], summary["norm"]) == (2, "mpi", "sync")
    assert (summary["epochs"], summary["resumed_from"]) == (2, None)
    assert summary["images_per_second"] > 0
    assert summary["step_seconds_p50"] > 0
    startup, written = summary["startup"], tmp_path / "sync" / "summary.json"
    parts = ["imports", "rendezvous", "data_and_model", "broadcast", "first_step"]
    assert list(startup["seconds"]) == parts
    assert all(seconds > 0 for seconds in startup["seconds"].values())
    assert startup["total"] == pytest.approx(sum(startup["seconds"].values()))
    first_step = startup["began"] + startup["total"]
    assert began < startup["began"] < first_step < written.stat().st_mtime
    journal = (tmp_path / "sync" / "metrics.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, journal) if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_horovod_over_gloo_trains_with_the_defaults(horovodrun: Launcher, tmp_path: Path) -> None:
    arguments = ["--backend", "horovod", "--output", str(tmp_path / "out")]
    horovodrun(2, TRAIN, arguments, options=["--gloo"], timeout=100).check()
    first, second = _fingerprints(tmp_path / "out")
    assert first == second
    assert _summary(tmp_path / "out")["backend"] == "horovod"
    assert _summary(tmp_path / "out")["accuracy"] > 0.97


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_tf_config_cluster_trains(tf_cluster: Launcher, tmp_path: Path) -> None:
    arguments = ["--epochs", "2", "--output", str(tmp_path / "out")]
    tf_cluster(2, TRAIN, arguments, timeout=100).check()
    first, second = _fingerprints(tmp_path / "out")
    assert first == second
    assert _summary(tmp_path / "out")["backend"] == "tf"
    assert _summary(tmp_path / "out")["accuracy"] > 0.95


@pytest.mark.timeout(60)
def test_a_config_file_and_flags_that_win(single_process: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "dnn"\nepochs = 5\nbatch-size = 64\n')
    arguments = ["--config", str(file), "--epochs", "1", "--output", str(tmp_path / "out")]
    single_process(1, TRAIN, arguments).check()
    summary = _summary(tmp_path / "out")
    assert (summary["model"], summary["epochs"], summary["batch_size"]) == ("dnn", 1, 64)


BAD_REQUESTS = {
    "model": (["--model", "nope"], "--model", "'nope'"),
    "data set": (["--dataset", "nope"], "--dataset", "'nope'"),
    "backend": (["--backend", "nope"], "--backend", "'nope'"),
    "norm": (["--norm", "nope"], "--norm", "'nope'"),
    "batch size 0": (["--batch-size", "0"], "--batch-size", "0"),
    "infinite rate": (["--learning-rate", "inf"], "--learning-rate", "inf"),
    "rate that is no number": (["--learning-rate", "nan"], "--learning-rate", "nan"),
    "empty output": (["--output", ""], "--output", "empty"),
    "not a number": (["--epochs", "many"], "--epochs", "many"),
    "option": (["--epoch", "1"], "--epoch", ""),
    "missing file": (["--config", "/nowhere.toml"], "/nowhere.toml", "No such file"),
}


@pytest.mark.parametrize("request_name", BAD_REQUESTS)
def test_a_bad_request_gets_one_line_and_exit_code_2(
    single_process: Launcher, request_name: str
) -> None:
    arguments, *named = BAD_REQUESTS[request_name]
    _refused(single_process(1, TRAIN, arguments), *named)


def test_an_unknown_config_key_is_named(single_process: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epoch = 3\n")
    result = single_process(1, TRAIN, ["--config", str(file)])
    _refused(result, "'epoch'", "did you mean 'epochs'?")


@pytest.mark.timeout(60)
def test_horovod_that_is_not_built_names_the_command(
    single_process: Launcher, tmp_path: Path
) -> None:
    # An environment without Horovod: a module of that name that cannot be imported stands first.
    (tmp_path / "horovod.py").write_text("raise ImportError('No module named horovod')\n")
    result = single_process(
        1,
        TRAIN,
        ["--backend", "horovod", "--output", str(tmp_path / "out")],
        environment={"PYTHONPATH": python_path(tmp_path)},
    )
    _refused(result, "python -m launcher install-horovod")


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_ranks_that_would_train_alone_are_refused_once(mpirun: Launcher, tmp_path: Path) -> None:
    result = mpirun(2, TRAIN, ["--backend", "local", "--output", str(tmp_path / "out")])
    assert result.returncode == 2
    assert "--backend auto" in result.stderr[0]
    assert "no communicator" in result.stderr[0]
    assert len(result.stderr[0].splitlines()) == 1
    assert result.stderr[1] == ""


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_of_a_tf_config_cluster_only_rank_0_prints_what_concerns_all(
    tf_cluster: Launcher, tmp_path: Path
) -> None:
    missing = ["--dataset", "mnist", "--output", str(tmp_path / "out")]
    for arguments, named in ((["--epochs", "0"], "--epochs"), (missing, "--data")):
        result = tf_cluster(2, TRAIN, arguments)
        assert result.returncode == 2, result.transcript()
        assert named in result.stderr[0]
        assert len(result.stderr[0].splitlines()) == 1, result.transcript()
        assert result.stderr[1] == ""


def test_help_does_not_import_tensorflow(single_process: Launcher, script: Any) -> None:
    program = script(
        "import sys\n"
        "sys.argv = ['launcher.train', '--help']\n"
        "from launcher.train.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "print(any(name.split('.')[0] in ('tensorflow', 'keras') for name in sys.modules))\n"
    )
    lines = single_process(1, program).check().stdout[0].splitlines()
    assert lines[-1] == "False"
    assert any("--batch-size" in line for line in lines)


def _refused(result: Any, *named: str) -> None:
    assert result.returncode == 2, result.transcript()
    assert len(result.stderr[0].splitlines()) == 1, result.transcript()
    assert all(text in result.stderr[0] for text in named), result.transcript()
    assert result.stdout[0] == ""
