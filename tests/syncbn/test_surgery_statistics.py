"""Statistics recomputed over a data set, against float64 sums over all of it at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization, recompute_statistics
from tests.processes import Launcher
from tests.syncbn.models import Block, Subclassed, shake

L = keras.layers
Values = dict[str, np.ndarray]


def perceptron(kind: type[keras.Layer] = SyncBatchNormalization, **options: object) -> keras.Model:
    inputs = keras.Input((3,))
    hidden = kind(name="first", **options)(L.Dense(4, name="d0")(inputs))
    hidden = L.Dropout(0.5)(L.ReLU()(hidden))
    outputs = kind(name="second", scale=False, **options)(L.Dense(5, name="d1")(hidden))
    return shake(keras.Model(inputs, outputs))


def rows(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 3)) * [1, 5, 0.1] + [0, 50, 3]).astype("float32")


def oracle(model: keras.Model, inputs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of what each of the perceptron's layers meets at inference, float64."""
    found = []
    values = inputs.astype("float64")
    for dense, name in (("d0", "first"), ("d1", "second")):
        kernel, bias = (v.numpy().astype("float64") for v in model.get_layer(dense).weights)
        values = values @ kernel + bias
        layer = model.get_layer(name)
        mean, variance = values.mean(0), values.var(0)
        found.append((mean, variance))
        values = (values - mean) / np.sqrt(variance + layer.epsilon)
        gamma = layer.gamma.numpy().astype("float64") if layer.scale else 1.0
        values = np.maximum(values * gamma + layer.beta.numpy(), 0.0)
    return found


def statistics(model: keras.Model) -> Values:
    return {
        variable.path: variable.numpy()
        for variable in model.non_trainable_variables
        if "seed" not in variable.path
    }


def assert_recomputed(model: keras.Model, inputs: np.ndarray) -> None:
    for name, (mean, variance) in zip(("first", "second"), oracle(model, inputs), strict=True):
        layer = model.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, mean, 2e-6, 2e-6)
        np.testing.assert_allclose(layer.moving_variance, variance, 5e-6)


@pytest.mark.parametrize("kind", [L.BatchNormalization, SyncBatchNormalization])
def test_two_layers_are_exact_and_nothing_else_changes(kind: type[keras.Layer]) -> None:
    model, inputs = perceptron(kind), rows(50)
    model.get_layer("first").trainable = False
    kept = [
        v.numpy() for v in [*model.get_layer("first").weights[:2], *model.get_layer("d1").weights]
    ]
    assert recompute_statistics(model, inputs) is model
    assert_recomputed(model, inputs)
    after = [
        v.numpy() for v in [*model.get_layer("first").weights[:2], *model.get_layer("d1").weights]
    ]
    assert all(np.array_equal(a, b) for a, b in zip(kept, after, strict=True))
    assert not model.get_layer("first").trainable
    assert "call" not in vars(model.get_layer("first"))
    assert not tf.config.functions_run_eagerly()


class Halves(keras.utils.PyDataset):
    def __init__(self, inputs: np.ndarray) -> None:
        super().__init__()
        self.inputs = inputs

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        half = len(self.inputs) // 2
        return self.inputs[index * half : (index + 1) * half], np.zeros(half)


def test_result_does_not_depend_on_how_the_data_come() -> None:
    inputs = rows(60)
    dataset = tf.data.Dataset.from_tensor_slices(inputs)
    ways = [
        inputs,
        tf.constant(inputs),
        [inputs],
        [inputs[:1], inputs[1:7], inputs[7:]],
        [(inputs[:30], None), (inputs[30:], None, None)],
        dataset.batch(11),
        tf.data.Dataset.zip((dataset, dataset)).batch(60),
        Halves(inputs),
    ]
    found = [statistics(recompute_statistics(perceptron(), way)) for way in ways]
    for other in found[1:]:
        for path, value in other.items():
            np.testing.assert_allclose(value, found[0][path], 1e-6, 1e-6)


def test_steps_end_every_pass() -> None:
    inputs = rows(60)
    endless = tf.data.Dataset.from_tensor_slices(inputs).batch(20).repeat()
    model = recompute_statistics(perceptron(), endless, steps=2)
    assert_recomputed(model, inputs[:40])


def test_far_from_zero_nothing_is_lost() -> None:
    inputs = (np.random.default_rng(1).normal(size=(4096, 3)) * 0.1 + 1e4).astype("float32")
    given = keras.Input((3,))
    model = keras.Model(given, L.BatchNormalization()(given))
    recompute_statistics(model, [inputs[:1000], inputs[1000:]])
    exact = inputs.astype("float64").var(0)
    np.testing.assert_allclose(model.layers[1].moving_variance, exact, 2e-6)


def test_renorm_debiasing_and_bessel_follow() -> None:
    inputs = rows(12)
    model = perceptron(renorm=True, zero_debias_moving_mean=True, bessel_correction=True)
    recompute_statistics(model, inputs)
    mean, variance = oracle(model, inputs)[0]
    layer = model.get_layer("first")
    np.testing.assert_allclose(layer.moving_variance, variance * 12 / 11, 5e-6)
    stddev = np.sqrt(variance * 12 / 11 + layer.epsilon)
    for tracked in (layer.moving_stddev, layer.renorm_stddev):
        np.testing.assert_allclose(tracked, stddev, 5e-6)
    np.testing.assert_allclose(layer.renorm_mean, mean, 2e-6, 2e-6)
    # Going on training starts from here, not from zero.
    layer(np.tile(mean, (4, 1)).astype("float32"), training=True)
    np.testing.assert_allclose(layer.moving_mean, mean, 1e-5, 1e-5)


def test_masks_of_the_model_count() -> None:
    inputs = np.random.default_rng(2).normal(size=(6, 5, 3)).astype("float32")
    inputs[2:, 3:] = 0.0  # masked
    given = keras.Input((5, 3))
    model = keras.Model(given, SyncBatchNormalization()(L.Masking()(given)))
    recompute_statistics(model, [inputs[:4], inputs[4:]])
    kept = inputs.astype("float64")[np.any(inputs != 0, axis=-1)]
    assert len(kept) == 22
    np.testing.assert_allclose(model.layers[-1].moving_mean, kept.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(model.layers[-1].moving_variance, kept.var(0), 1e-5)


def test_frequency_weights_in_the_models_own_call_count() -> None:
    given, weights = keras.Input((3,)), keras.Input(())
    model = keras.Model([given, weights], SyncBatchNormalization()(given, batch_weights=weights))
    inputs, often = rows(8), np.array([1, 2, 0, 3, 1, 1, 4, 0], "float32")
    recompute_statistics(model, [((inputs, often),)])
    np.testing.assert_allclose(
        model.layers[-1].moving_variance, np.repeat(inputs, often.astype(int), 0).var(0), 1e-5
    )


class Compiled(keras.Model):
    """Its graph is traced before, and one of its layers insists on training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L.BatchNormalization(), L.BatchNormalization()

    @tf.function
    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.second(self.first(inputs, training=True) ** 3)


def test_layers_inside_a_traced_function_are_seen() -> None:
    model, inputs = Compiled(), rows(64)
    model(inputs)
    recompute_statistics(model, [inputs[:10], inputs[10:]])
    wide = inputs.astype("float64")
    np.testing.assert_allclose(model.first.moving_mean, wide.mean(0), 1e-6, 1e-6)
    hidden = ((wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-3)) ** 3
    np.testing.assert_allclose(model.second.moving_variance, hidden.var(0), 1e-4)


def test_subclassed_and_composite_models_reach_their_fixed_point() -> None:
    model = Subclassed()
    inputs = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    model(inputs)
    shake(model)
    recompute_statistics(model, [inputs[:15], inputs[15:]])
    hidden = model.listed[0](model.single(inputs)).numpy().astype("float64")
    np.testing.assert_allclose(model.listed[1].moving_mean, hidden.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(model.listed[1].moving_variance, hidden.var(0), 1e-5)
    given = keras.Input((4,))
    block = keras.Model(given, Block(4)(given))
    once = statistics(recompute_statistics(block, [inputs]))
    again = statistics(recompute_statistics(block, [inputs]))
    for path, value in once.items():
        np.testing.assert_allclose(again[path], value, 1e-6, 1e-7)


def test_layer_called_several_times_counts_all_calls() -> None:
    one, two = keras.Input((3,)), keras.Input((3,))
    layer = SyncBatchNormalization()
    model = keras.Model([one, two], [layer(one), layer(two)])
    left, right = rows(10, 1), rows(10, 2)
    recompute_statistics(model, [((left, right),)])
    both = np.concatenate([left, right]).astype("float64")
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), 1e-6, 1e-6)
    np.testing.assert_allclose(layer.moving_variance, both.var(0), 1e-5)


def test_half_precision_inputs_do_not_overflow() -> None:
    given = keras.Input((3,))
    model = keras.Model(given, SyncBatchNormalization(dtype="mixed_float16")(given))
    inputs = (rows(30) * 500).astype("float16").astype("float32")
    recompute_statistics(model, [inputs])
    np.testing.assert_allclose(
        model.layers[1].moving_variance, inputs.astype("float64").var(0), 1e-5
    )


def test_unused_layers_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Subclassed()
    model.spare = L.BatchNormalization(name="spare")
    model.spare.build((None, 4))
    model(np.ones((2, 4), "float32"))
    recompute_statistics(model, [np.random.default_rng(0).normal(size=(9, 4)).astype("float32")])
    assert "never calls them: spare" in caplog.text
    assert np.all(model.spare.moving_variance.numpy() == 1.0)


def test_failing_pass_leaves_everything_as_it_was() -> None:
    model = perceptron()
    before = [v.numpy() for v in model.weights]
    passes = 0

    class Fragile:
        def __iter__(self) -> Iterator[np.ndarray]:
            nonlocal passes
            passes += 1
            yield rows(4)
            if passes == 3:  # the order, the first layer, the second
                raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        recompute_statistics(model, Fragile())
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.weights, strict=True))
    assert "call" not in vars(model.get_layer("first"))


def generator() -> Iterator[np.ndarray]:
    yield rows(4)


@pytest.mark.parametrize(
    ("model", "dataset", "steps", "message"),
    [
        (perceptron, generator, None, "must be readable several times, .* Received: generator"),
        (perceptron, lambda: 3, None, "must be readable several times, .* Received: int"),
        (
            perceptron,
            lambda: tf.data.Dataset.from_tensors(rows(4)).repeat(),
            None,
            "dataset never ends: give steps",
        ),
        (perceptron, lambda: [rows(4)], 0, "steps must be a positive integer or None. .*steps=0"),
        (perceptron, lambda: [], None, "at least one batch on some rank. Received: none"),
        (lambda: L.Dense(1), lambda: [rows(4)], None, "expects a keras.Model. Received: Dense"),
        (
            lambda: keras.Sequential([L.BatchNormalization(name="b")], name="s"),
            lambda: [rows(4)],
            None,
            "model 's', of which b is not built",
        ),
    ],
)
def test_bad_input_is_named(
    model: Callable[[], object], dataset: Callable[[], object], steps: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recompute_statistics(model(), dataset(), steps=steps)


PROGRAM = """
import json, sys
import numpy as np
import syncbn
from tests.syncbn.test_surgery_statistics import perceptron, rows, statistics

ranks = syncbn.init(sys.argv[1])
inputs = rows(50)
report = {}

def bits(model):
    return {path: value.tobytes().hex() for path, value in statistics(model).items()}

for name, cut in (("uneven", 31), ("empty", 0)):
    mine = inputs[:cut] if ranks.rank == 0 else inputs[cut:]
    batches = [mine[i:i + 7] for i in range(0, len(mine), 7)]
    report[name] = bits(syncbn.recompute_statistics(perceptron(renorm=True), batches))

model = perceptron()
before = bits(model)
def broken():
    yield inputs
    raise OSError("rank 1 lost its disk")
class Broken:
    def __iter__(self):
        return broken()
try:
    syncbn.recompute_statistics(model, Broken() if ranks.rank == 1 else [inputs])
except Exception as error:
    report["failure"] = f"{type(error).__name__}: {error}"
report["restored"] = bits(model) == before
print(json.dumps(report))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["mpi", "tf"])
def test_two_ranks_with_any_shards_agree_with_one_process(
    mpirun: Launcher,
    tf_cluster: Launcher,
    script: Callable[[str], Path],
    backend: str,
) -> None:
    start = mpirun if backend == "mpi" else tf_cluster
    answers = start(2, script(PROGRAM), [backend], environment={"PYTHONPATH": "."}).json()
    alone = statistics(recompute_statistics(perceptron(renorm=True), rows(50)))
    for name in ("uneven", "empty"):
        assert answers[0][name] == answers[1][name]  # bit for bit
        for path, value in alone.items():
            ranks = np.frombuffer(bytes.fromhex(answers[0][name][path]), value.dtype)
            np.testing.assert_allclose(ranks, value, 1e-6, 1e-6)
    assert answers[0]["failure"].startswith("SyncbnError: recompute_statistics failed on another")
    assert answers[1]["failure"] == "OSError: rank 1 lost its disk"
    assert answers[0]["restored"]
    assert answers[1]["restored"]
