"""Two real ranks with everything switched on that watches them, and with bad luck in some of it."""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from tests.processes import Launcher, find_executable

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """Debian's Pushgateway on a free loopback port."""
    program = find_executable("prometheus-pushgateway")
    if program is None:
        pytest.skip("no prometheus-pushgateway: apt-get install prometheus-pushgateway")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (tmp_path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait(5)


def test_everything_at_once(mpirun: Launcher, gateway: str, tmp_path: Path) -> None:
    output = tmp_path / "digits"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["--epochs", "2", "--output", str(output), "--profile-steps", "10:14"]
        arguments += ["--tensorboard", "--metrics-push", gateway, "--metrics-port", str(port)]
        result = mpirun(2, "launcher.train", arguments, timeout=120).check()
    line = f"launcher.train: metrics are not served on 127.0.0.1:{port}: Address already in use."
    assert result.stderr[0].startswith(line)
    assert result.stderr[0].count("\n") == 1, "one clear line for the taken port"
    assert result.stderr[1] == ""
    assert not (output / "metrics" / "targets" / "rank-0.json").exists()

    _check_trace(output)
    _check_tensorboard(output)
    _check_pushed(gateway)
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {"start", "step", "window", "epoch", "layers", "checkpoint", "end"} == {
        event["event"] for event in events
    }
    steps = [event for event in events if event["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert all(step["gradient_norm"] > 0 for step in steps)
    window = next(event for event in events if event["event"] == "window")
    assert [len(column) for column in window["ranks"].values()] == [2] * len(window["ranks"])
    page = (output / "report.html").read_text()
    assert "SyncBN all-reduces take" in page


def _check_trace(output: Path) -> None:
    events = json.loads((output / "profile" / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    for rank in (0, 1):
        mine = [event for event in spans if event["pid"] == rank]
        steps = [e for e in mine if e["cat"] == "step" and e["name"].startswith("step ")]
        assert [event["name"] for event in steps] == [f"step {n}" for n in range(10, 15)]
        assert sum(event["cat"] == "gradients" for event in mine) == 5
        # Two for each of three layers.
        assert sum(event["cat"] == "sync_batch_norm" for event in mine) == 5 * 6
        assert list((output / "profile" / f"rank-{rank}").rglob("*.xplane.pb"))
        first, last = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"]
        for event in mine:
            assert first - 1 <= event["ts"] <= event["ts"] + event["dur"] <= last + 1
    # One all-reduce on two ranks overlaps on the common time line.
    gradients = [[e for e in spans if (e["pid"], e["cat"]) == (r, "gradients")] for r in (0, 1)]
    for one, other in zip(*gradients, strict=True):
        assert one["ts"] < other["ts"] + other["dur"]
        assert other["ts"] < one["ts"] + one["dur"]


def _check_tensorboard(output: Path) -> None:
    (file,) = (output / "tensorboard").glob("events.out.tfevents.*")
    values: dict[str, list[float]] = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name in {"scalars", ""}
            values.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    assert len(values["validation/accuracy"]) == 2
    assert len(values["train/loss"]) == len(values["train/learning_rate"]) > 20
    assert values["train/loss"][-1] < values["train/loss"][0]


def _check_pushed(gateway: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{gateway}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    steps = [line for line in lines if line.startswith("training_steps_total{")]
    assert len(steps) == 2
    for rank, line in enumerate(sorted(steps)):
        assert f':rank-{rank}"' in line
        assert 'run="digits"' in line
        assert float(line.rpartition(" ")[2]) > 20


def test_failing_observers_do_not_stop_training(single_process: Launcher, tmp_path: Path) -> None:
    """No gateway, no MLflow, a host that is not ours, a metrics directory that is a file."""
    output = tmp_path / "digits"
    output.mkdir()
    (output / "metrics").write_text("in the way")
    arguments = ["--epochs", "1", "--model", "dnn", "--output", str(output), "--mlflow"]
    arguments += ["--metrics-push", "user:secret@127.0.0.1:9", "--metrics-port", "0"]
    result = single_process(1, "launcher.train", arguments, timeout=100).check()
    lines = result.stderr[0].splitlines()
    assert all(line.startswith("launcher.train: ") for line in lines)
    assert all(line.endswith("; training continues") for line in lines)
    gateway, directory, mlflow = sorted(
        lines, key=lambda line: ("pushed" not in line, "written" not in line)
    )
    assert "could not be pushed to 127.0.0.1:9" in gateway
    assert "secret" not in gateway
    assert "metrics cannot be written" in directory
    assert "MLflow is missing: pip install mlflow" in mlflow
    assert (output / "report.html").exists()
    assert json.loads((output / "summary.json").read_text())["accuracy"] > 0.5
