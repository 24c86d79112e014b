"""The observers of a rank by themselves: what each notes, and that none of them stops training."""

import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from launcher.errors import MissingToolError
from launcher.metrics import RANK_METRICS, Page
from launcher.metrics import definitions as m
from launcher.train.observers import EpochDone, Observer, Observers, RunStarted, StepDone
from launcher.train.watch.exchange import Exchange, slowest
from launcher.train.watch.exporter import local_rank
from launcher.train.watch.journal import Journal, thinning
from launcher.train.watch.measures import Measures, Sums
from launcher.train.watch.profile import chrome_trace
from launcher.train.watch.statistics import Drifts, weights_to_compare
from syncbn.communicators.local import LocalCommunicator
from syncbn.telemetry import Span


def _run(step: int = 0, **changes: Any) -> RunStarted:
    fields: dict[str, Any] = {
        "model": "cnn",
        "dataset": "digits",
        "parameters": 1,
        "rank": 0,
        "world_size": 1,
        "backend": "local",
        "norm": "sync",
        "epochs": 2,
        "epoch": 0,
        "step": step,
        "steps_per_epoch": 10,
        "output": Path(),
    }
    return RunStarted(**(fields | changes))


def _step(step: int, loss: float = 0.5, seconds: float = 0.1) -> StepDone:
    return StepDone(0, step, loss, 0.9, 64, 0.01, seconds, 32, 0.02)


def _epoch(step: int) -> EpochDone:
    return EpochDone(0, step, 0.5, 0.9, 0.6, 0.8, 0.01, 100.0, 1.0)


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
def test_an_observer_that_fails_is_one_line_and_training_goes_on(
    capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    failing, later = _Failing(error), Measures(Page(RANK_METRICS))
    observers = Observers([failing, later])
    observers.on_start(_run())
    for step in range(1, 4):
        observers.on_step(_step(step))
    assert failing.calls == 1
    assert len(later.take_window().steps) == 2
    said = capsys.readouterr().err
    assert (
        said == f"launcher.train: the third wheel is off from here on: {reason}; training goes on\n"
    )


def test_an_essential_observer_ends_the_job() -> None:
    failing = _Failing(RuntimeError("a peer is gone"))
    failing.essential = True
    with pytest.raises(RuntimeError, match="peer"):
        Observers([failing]).on_step(_step(1))


def test_the_parts_of_a_step_add_up() -> None:
    sums = Sums()
    spans = [
        Span("sync_batch_norm", "a", 0.0, 0.01, 1040),
        Span("sync_batch_norm", "b", 0.0, 0.02, 1040),
        Span("gradients", "g", 0.0, 0.015, 265_000),
        Span("other", "s", 0.0, 0.005, 16),
    ]
    sums.add(_step(1), spans)
    assert sum(sums.parts.values()) == pytest.approx(0.1)
    assert sums.parts["compute"] == pytest.approx(0.1 - 0.02 - 0.05)
    assert sums.all_reduces["sync_batch_norm"] == [0.01, 0.02]
    assert sums.bytes == {"sync_batch_norm": 2080, "gradients": 265_000, "other": 16}
    sums.add(_step(2, seconds=0.03), [*spans, *spans])
    assert sums.parts["compute"] == pytest.approx(0.03), "overlapping collectives: never negative"


def test_the_page_follows_the_steps_to_the_last_one() -> None:
    page = Page(RANK_METRICS)
    measures = Measures(page)
    measures.on_start(_run(step=7))
    for step in (8, 9, 10):
        measures.on_step(_step(step, loss=math.nan if step == 10 else 0.5))
    measures.on_epoch(_epoch(10))
    measures.on_end({})
    text = page.text().decode()
    for line in (
        "training_steps_total 3.0",
        "training_examples_total 96.0",
        "training_step_duration_seconds_count 3.0",
        "training_loss NaN",
        "training_non_finite_losses_total 1.0",
        "training_validation_accuracy_ratio 0.8",
        "training_learning_rate 0.01",
    ):
        assert f"\n{line}\n" in text
    assert len(measures.take_window().steps) == 2, "the compiled first step is in no window"
    assert measures.take_window().steps == []


def test_windows_close_after_fifty_steps_and_at_the_end_of_epochs(tmp_path: Path) -> None:
    page = Page(RANK_METRICS)
    measures = Measures(page)
    heard: list[tuple[int, int]] = []

    class Listener(Observer):
        def on_window(self, window: Any) -> None:
            heard.append((window.step, window.steps))

    variable = keras.Variable(np.ones(3))
    ranks = LocalCommunicator()
    exchange = Exchange(measures, page, ranks, [variable], Listener())
    observers = Observers([measures, exchange])
    observers.on_start(_run(epochs=1, steps_per_epoch=70))
    for step in range(1, 71):
        observers.on_step(_step(step))
    observers.on_epoch(_epoch(70))
    observers.on_step(_step(71))
    observers.on_end({"steps": 71})
    assert heard == [(51, 50), (70, 19), (71, 1)]
    assert page.registry.get_sample_value("training_diverged_ranks") == 0
    assert page.registry.get_sample_value("training_slowest_rank_ratio") == 1


def test_the_slowest_rank_is_compared_with_the_others() -> None:
    assert slowest(np.array([1.0, 1.5])) == (1, 1.5)
    rank, ratio = slowest(np.array([1.0, 1.1, 2.0, 1.2]))
    assert (rank, round(ratio, 4)) == (2, 1.8182)
    assert slowest(np.array([3.0])) == (0, 1.0)
    assert slowest(np.zeros(2)) == (0, 1.0)


def test_the_journal_is_json_thinned_and_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    about = {"config": {"seed": 0}}
    journal = Journal(path, about, lambda: 2.0, lambda: {"bn": (0.1, 0.2)})
    journal.on_start(_run())
    for step in range(1, 21):
        journal.on_step(_step(step, loss=math.inf if step == 20 else 0.123456789))
    journal.on_epoch(_epoch(20))
    with path.open("a") as file:
        file.write('{"event": "step", "step": 21, "lo')

    resumed = Journal(path, about, lambda: 2.0, dict)
    resumed.on_start(_run(step=10))
    resumed.on_step(_step(11))
    resumed.on_end({"steps": 11, "stopped": True})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["step"] * 10, "start", "step", "end"]
    assert [line["step"] for line in lines] == [0, *range(1, 11), 10, 11, 11]
    assert lines[1]["loss"] == 0.1234568
    assert lines[1]["gradient_norm"] == 2.0
    assert lines[0]["config"] == {"seed": 0}


def test_steps_are_thinned_out_the_further_a_run_gets() -> None:
    assert [thinning(step) for step in (1, 1999, 2000, 4000, 1_000_000)] == [1, 1, 2, 4, 512]
    kept = sum(step % thinning(step) == 0 for step in range(1, 1_000_001))
    assert kept < 12_000


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, {}, lambda: math.nan, dict)
    journal.on_start(_run())
    journal.on_step(_step(1, loss=math.nan))
    journal.on_end({"steps": 1, "stopped": False})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[1]["loss"] is None


def test_drift_is_in_standard_deviations() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    layer = model.layers[0]
    drifts = Drifts(model)
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


def test_clocks_of_other_hosts_are_set_by_the_gradient_all_reduces() -> None:
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
def test_the_local_rank_is_known_before_any_engine_is_up(
    environment: dict[str, str], expected: int
) -> None:
    assert local_rank(environment) == expected


def test_every_part_of_a_step_and_kind_of_all_reduce_is_a_label() -> None:
    assert set(Sums().parts) == set(m.STEP_PARTS)
    assert set(Sums().all_reduces) == set(m.ALL_REDUCE_KINDS)
