"""The observers of a rank: none of them stops training; drift, traces and local ranks."""

import json
import math

import keras
import numpy as np
import pytest

from launcher.errors import MissingToolError
from launcher.metrics import RANK_METRICS, Page
from launcher.train.environment import local_rank
from launcher.train.observers.base import Observer, Observers, StepDone
from launcher.train.observers.moving_statistics import MovingStatisticsDrift, weights_to_compare
from launcher.train.observers.profile import chrome_trace
from launcher.train.observers.step_timing import StepTiming
from tests.launcher.train.observers.events import run_started, step_done


class _Failing(Observer):
    what = "the third wheel"

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def on_step(self, step: StepDone) -> None:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (MissingToolError("it is missing: pip install it"), "it is missing: pip install it"),
    ],
)
def test_a_failing_observer_is_one_line_and_training_continues(
    capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    failing, later = _Failing(error), StepTiming(Page(RANK_METRICS))
    observers = Observers([failing, later])
    observers.on_start(run_started())
    for step in range(1, 4):
        observers.on_step(step_done(step))
    assert failing.calls == 1
    assert len(later.take_window().steps) == 2
    said = capsys.readouterr().err
    line = f"the third wheel is disabled from now on: {reason}; training continues"
    assert said == f"launcher.train: {line}\n"


def test_an_essential_observer_ends_the_job() -> None:
    failing = _Failing(RuntimeError("a peer is gone"))
    failing.essential = True
    with pytest.raises(RuntimeError, match="peer"):
        Observers([failing]).on_step(step_done(1))


def test_drift_is_in_standard_deviations() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    layer = model.layers[0]
    drifts = MovingStatisticsDrift(model)
    assert drifts() == {layer.path: (0.0, 0.0)}
    layer.moving_mean.assign(np.full(4, 3.0))
    layer.moving_variance.assign(np.full(4, 4.0))
    mean, variance = drifts()[layer.path]
    assert mean == pytest.approx(1.5)
    assert variance == pytest.approx(math.log(4))
    assert drifts()[layer.path] == (0.0, 0.0), "since the last look"


def test_moving_statistics_are_compared_only_where_they_must_be_equal() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    assert len(weights_to_compare(model, "sync")) == 4
    assert len(weights_to_compare(model, "local")) == 2


def test_clocks_of_other_hosts_are_aligned_by_the_gradient_all_reduces() -> None:
    ours = {"host": "a", "events": [["gradients", "g", 10.0, 0.5, 100], ["step", "s", 9.0, 2.0, 0]]}
    theirs = {"host": "b", "events": [["gradients", "g", 70.1, 0.4, 100]]}
    trace = chrome_trace([ours, theirs, {"host": "a", "events": ours["events"]}])
    spans = {(e["pid"], e["cat"]): e for e in trace["traceEvents"] if e["ph"] == "X"}
    assert spans[0, "step"]["ts"] == 0
    assert spans[0, "gradients"]["ts"] == 1e6
    assert spans[1, "gradients"]["ts"] == pytest.approx(1.1e6)
    assert spans[2, "gradients"] == spans[0, "gradients"] | {"pid": 2}
    assert spans[1, "gradients"]["args"] == {"bytes": 100}
    names = {
        e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"
    }
    assert names == {0: "rank 0 on a", 1: "rank 1 on b", 2: "rank 2 on a"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"HOROVOD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "5"}, 2),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "5"}, 5),
        (
            {
                "TF_CONFIG": json.dumps(
                    {
                        "cluster": {"worker": ["a:1", "b:1", "b:2"]},
                        "task": {"type": "worker", "index": 2},
                    }
                )
            },
            1,
        ),
    ],
)
def test_the_local_rank_is_known_before_any_backend_is_up(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_rank() == expected
