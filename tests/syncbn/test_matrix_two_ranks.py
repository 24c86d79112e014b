"""Trainings and tools on two ranks of every backend, compared with one process with all rows.

two_ranks/ has the programs of the ranks, one module per test.
"""

from typing import Any

import keras
import numpy as np
import pytest

from syncbn import recompute_statistics
from tests.syncbn.one_process import dense_model, flat_weights, train_alone
from tests.syncbn.perceptron import perceptron
from tests.syncbn.perceptron import statistics as statistics_of
from tests.syncbn.runs import JOBS, Runs
from tests.syncbn.two_ranks import callbacks, statistics, switch, telemetry

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("fresh_layers"),
]

# Horovod over MPI reduces statistics like the backend `mpi`.
on_all_backends = pytest.mark.parametrize(("world", "size"), [(world, 2) for world in JOBS])
on_each_road = pytest.mark.parametrize(
    ("world", "size"), [(world, 2) for world in JOBS if world != "horovod-mpi"]
)


def _answers(runs: Runs, world: str, size: int, part: str) -> list[dict[str, Any]]:
    return runs.reports(world, size)["two ranks"][part]


@on_all_backends
def test_averaged_gradients_train_as_one_process(world: str, size: int, runs: Runs) -> None:
    first, second = _answers(runs, world, size, "training")
    assert first == second, "the weights of the ranks differ"
    np.testing.assert_array_equal(first["broadcast"], flat_weights(dense_model(1)))
    sgd = train_alone(keras.optimizers.SGD(0.1), 3)
    for name in ("train_on_batch", "eager", "loss_scale", "tape_of_rows"):
        np.testing.assert_allclose(first[name], sgd, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(first["float16"], sgd, atol=2e-3)
    np.testing.assert_allclose(first["bfloat16"], sgd, atol=2e-2)
    clipped = train_alone(keras.optimizers.Adam(0.05, global_clipnorm=0.5), 4)
    np.testing.assert_allclose(first["fit"], clipped, atol=1e-6)
    passes = train_alone(keras.optimizers.Adam(0.05), 3)
    np.testing.assert_allclose(first["passes"], passes, atol=1e-6)
    # The mean of seven rows, times seven.
    summed = train_alone(keras.optimizers.SGD(0.01), 3, scale=7.0)
    np.testing.assert_allclose(first["sum"], summed, atol=1e-5)
    np.testing.assert_array_equal(first["skipped"], flat_weights(dense_model(1)))
    assert first["scale"] == 32

    table, one_sided, untouched = first["sparse"]
    expected = np.arange(12, dtype="float32").reshape(6, 2) * 0.5  # the decay of SGD(1.0)
    expected[[0, 5]] -= 0.5
    expected[1] -= 1.0
    np.testing.assert_allclose(table, expected)
    np.testing.assert_allclose(one_sided, [0.5 - 2.0, 0.5 - 2.0])
    assert untouched == [5.0]
    assert first["tape"] == 1.5
    assert first["of no rows"] == -3.0
    np.testing.assert_allclose(first["in half"], -40.0, rtol=1e-3)
    np.testing.assert_allclose(first["by passes"], [0.5 - 0.5, 0.5 - 0.5])
    assert "call syncbn.weigh_rows(model)" in first["rows of a later step"]
    assert first["mismatch"] == "WorldError"


@on_each_road
def test_a_fit_with_all_callbacks_is_one_fit(world: str, size: int, runs: Runs) -> None:
    first, second = _answers(runs, world, size, "callbacks")
    assert first == second
    rates = [0.1, 0.15, 0.2]
    np.testing.assert_allclose(first["rates"], rates, rtol=1e-6)
    np.testing.assert_allclose(first["rates in steps"], [0.1, 0.125, 0.15, 0.175, 0.2, 0.2], 1e-6)
    assert not first["jit"]

    x, y = callbacks.data()
    keras.utils.set_random_seed(0)
    alone = callbacks.classifier(keras.layers.BatchNormalization)
    callbacks.measured(alone, keras.optimizers.SGD(callbacks.RATE))
    follow = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    part = {"batch_size": len(x), "epochs": callbacks.EPOCHS, "shuffle": False, "verbose": 0}
    history = alone.fit(x, y, validation_data=(x, y), callbacks=[follow], **part).history
    # Keras uses float32 where the synchronized layer uses float64.
    for epoch, logs in enumerate(first["epochs"]):
        for name, value in logs.items():
            np.testing.assert_allclose(value, history[name][epoch], atol=2e-5, err_msg=name)
    assert first["history"] == [logs["val_auc"] for logs in first["epochs"]]
    for mine, theirs in zip(first["weights"], alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs.ravel(), atol=2e-5)
    for name in ("loss", "accuracy", "auc"):
        np.testing.assert_allclose(first["evaluate"][name], history[f"val_{name}"][-1], atol=2e-5)

    assert "norm/moving_variance differs on rank" in first["alarm"]
    assert "after step 2" in first["alarm"]
    assert first["stopped at"] == 5
    assert "steps by rank [2, 1]" in first["uneven"]


@on_each_road
def test_a_nan_on_one_rank_reaches_no_weight(world: str, size: int, runs: Runs) -> None:
    answers = _answers(runs, world, size, "non-finite")
    for answer in answers:
        assert "step 3 is not finite: the batch of rank 1 holds NaN" in answer["stop"]
        assert answer["steps before"] == 2
        assert answer["finite"], "a weight, a moving statistic or the optimizer is not finite"
        assert answer["skip"] == ""
        assert answer["skipped"] == 1
        assert np.isfinite(answer["loss"])
        assert answer["as without"], "a skipped step had an effect"
        assert "step 2 is not finite: the output of layer out" in answer["rate"]
        assert "on ranks 0, 1; that update was not made" in answer["rate"]
        assert answer["scaled"] == ""
        assert 2.0**110 < answer["scale"] < 2.0**127, "no gradient overflowed"
    assert answers[0]["state"] == answers[1]["state"]


@on_each_road
def test_recomputed_statistics_are_those_of_one_process(world: str, size: int, runs: Runs) -> None:
    answers = _answers(runs, world, size, "statistics")
    alone = statistics_of(recompute_statistics(perceptron(renorm=True), statistics.data()))
    for name in statistics.CUTS:
        assert answers[0][name] == answers[1][name]  # bit for bit
        for bits, value in zip(answers[0][name], alone.values(), strict=True):
            ranks = np.frombuffer(bytes.fromhex(bits), value.dtype)
            np.testing.assert_allclose(ranks, value, 1e-6, 1e-6)
    assert answers[0]["failure"].startswith("SyncbnError: recompute_statistics failed on another")
    assert answers[1]["failure"] == "OSError: rank 1 lost its disk"
    assert all(answer["restored"] for answer in answers)


@on_each_road
def test_the_training_switch_of_tensorflow_1(world: str, size: int, runs: Runs) -> None:
    ranks = _answers(runs, world, size, "switch")
    alone = switch.behind_the_switch(switch.data())
    for key in ("first", "gradient", "second"):
        joined = np.concatenate([np.array(report[key]) for report in ranks])
        assert np.linalg.norm(joined - alone[key]) < 1e-5 * np.linalg.norm(alone[key])
    for scope in ("one", "two"):
        assert ranks[0][scope] == ranks[1][scope]
        np.testing.assert_allclose(ranks[0][scope], alone[scope], 1e-5)


@on_each_road
def test_every_collective_of_a_step_is_measured(world: str, size: int, runs: Runs) -> None:
    answers = _answers(runs, world, size, "telemetry")
    for answer in answers:
        kinds = [span[0] for span in answer["spans"]]
        assert sorted(kinds) == ["gradients", "sync_batch_norm", "sync_batch_norm"]
        for kind, start, seconds, size_in_bytes in answer["spans"]:
            assert 0 <= start < 5
            assert 0 <= seconds < 5
            if kind == "gradients":  # float32, with the weight and a presence for each variable
                assert size_in_bytes >= 4 * answer["parameters"]
            else:  # at least two float64 for each of 8 channels
                assert size_in_bytes >= 2 * 8 * 8
        assert answer["numbers"]["gradient_norm"] > 0
        assert answer["again"] == 0
        assert answer["eager"] == [["other", 80]]
    first, second = (sum(span[2] for span in answer["spans"]) for answer in answers)
    late = 2 / 3 * telemetry.LATE_SECONDS
    assert first > late + second, "the wait for the late rank must be seen on the other one"
    assert answers[0]["numbers"] == answers[1]["numbers"]
