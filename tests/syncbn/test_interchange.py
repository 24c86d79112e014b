"""Files between Keras' layer and ours, and from a Horovod job to a machine that has no Horovod."""

import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from tests.processes import Launcher
from tests.syncbn.models import branched, sequential, shake

L = keras.layers

# Whatever adds over ranks, and whatever calls back into Python, which an exported graph cannot.
COMMUNICATION = re.compile(r"Collective|Horovod|Nccl|AllReduce|PyFunc")


def operations(nodes: Iterable[Any], functions: Iterable[Any]) -> set[str]:
    inside = [node.op for function in functions for node in function.node_def]
    return {*(node.op for node in nodes), *inside}


def operations_of_export(directory: Path) -> set[str]:
    """The type of every operation of a SavedModel, those of its functions included."""
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((directory / "saved_model.pb").read_bytes())
    found: set[str] = set()
    for part in model.meta_graphs:
        found |= operations(part.graph_def.node, part.graph_def.library.function)
    return found


def operations_of_call(model: keras.Model, inputs: Any, training: bool) -> set[str]:
    call = tf.function(lambda x: model(x, training=training))
    graph = call.get_concrete_function(tf.constant(inputs)).graph.as_graph_def()
    return operations(graph.node, graph.library.function)


def communicating(found: set[str]) -> set[str]:
    assert len(found) > 5
    return {name for name in found if COMMUNICATION.search(name)}


def bits(model: keras.Model) -> list[str]:
    return [variable.numpy().tobytes().hex() for variable in model.weights]


def renormalized() -> keras.Model:
    return keras.Sequential(
        [keras.Input((3,)), L.Dense(4), L.BatchNormalization(renorm=True, axis=1)],
        name="renormalized",
    )


@pytest.fixture(params=[sequential, branched, renormalized], ids=lambda f: f.__name__)
def stock(request: pytest.FixtureRequest) -> keras.Model:
    return shake(request.param())


def kinds(model: keras.Model) -> set[type]:
    return {type(la) for la in model._flatten_layers() if isinstance(la, L.BatchNormalization)}


def test_keras_files_go_there_and_back_bit_for_bit(stock: keras.Model, tmp_path: Path) -> None:
    stock.save(tmp_path / "stock.keras")
    ours = convert_sync_batchnorm(keras.saving.load_model(tmp_path / "stock.keras"))
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")  # no custom_objects needed
    assert kinds(loaded) == {SyncBatchNormalization}
    back = revert_sync_batchnorm(loaded)
    back.save(tmp_path / "back.keras")
    final = keras.saving.load_model(tmp_path / "back.keras")
    assert kinds(final) == {L.BatchNormalization}
    assert bits(stock) == bits(ours) == bits(loaded) == bits(final)


def test_weight_files_fit_both_layers_bit_for_bit(stock: keras.Model, tmp_path: Path) -> None:
    file, file_back = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    stock.save_weights(file)
    empty = stock.__class__.from_config(stock.get_config())
    ours = convert_sync_batchnorm(empty)
    assert bits(ours) != bits(stock)
    ours.load_weights(file)
    ours.save_weights(file_back)
    empty.load_weights(file_back)
    assert bits(stock) == bits(ours) == bits(empty)


def test_weight_files_fit_a_model_with_both_layers(tmp_path: Path) -> None:
    def stack(*kinds: type[keras.Layer]) -> keras.Model:
        inner = [layer for kind in kinds for layer in (L.Dense(3), kind())]
        return keras.Sequential([keras.Input((3,)), *inner])

    stock = stack(L.BatchNormalization, L.BatchNormalization)
    shake(stock).save_weights(tmp_path / "a.weights.h5")
    for mixed in (
        stack(SyncBatchNormalization, L.BatchNormalization),
        stack(L.BatchNormalization, SyncBatchNormalization),
    ):
        mixed.load_weights(tmp_path / "a.weights.h5")
        assert bits(mixed) == bits(stock)


def test_our_layer_calls_itself_by_its_own_name() -> None:
    # Its class goes by the name of Keras' own, or the weights files above would not fit.
    assert repr(SyncBatchNormalization(name="b")) == "<SyncBatchNormalization name=b, built=False>"
    assert "SyncBatchNormalization" in repr(SyncBatchNormalization)


def test_exports_predict_the_same_and_hold_no_communication(
    stock: keras.Model, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    source = stock.inputs if isinstance(stock, keras.Sequential) else stock.input
    inputs = keras.tree.map_structure(
        lambda tensor: random.normal(size=(2, *tensor.shape[1:])).astype("float32"), source
    )
    inputs = inputs[0] if isinstance(inputs, list) else inputs
    expected = keras.tree.flatten(stock(inputs, training=False))
    ours = convert_sync_batchnorm(stock)
    for name, model in (("ours", ours), ("back", revert_sync_batchnorm(ours))):
        model.export(tmp_path / name, verbose=False)
        assert communicating(operations_of_export(tmp_path / name)) == set()
        loaded = tf.saved_model.load(str(tmp_path / name))
        for ours_now, before in zip(
            keras.tree.flatten(loaded.serve(inputs)), expected, strict=True
        ):
            np.testing.assert_allclose(ours_now, before, 1e-5, 1e-6)


def test_keras_own_configuration_makes_our_layer() -> None:
    layer = L.BatchNormalization(axis=1, momentum=0.7, gamma_regularizer="l1", name="mine")
    ours = SyncBatchNormalization.from_config(layer.get_config())
    assert (ours.axis, ours.momentum, ours.name) == (1, 0.7, "mine")
    assert isinstance(ours.gamma_regularizer, keras.regularizers.L1)
    assert not ours.synchronized  # as it says; convert_sync_batchnorm is what synchronizes
    back = L.BatchNormalization.from_config(
        {key: value for key, value in ours.get_config().items() if key in layer.get_config()}
    )
    assert back.get_config() == layer.get_config()


def test_our_configuration_is_read_back_whole() -> None:
    layer = SyncBatchNormalization(
        group_size=2, zero_debias_moving_mean=True, bessel_correction=True, activation="relu"
    )
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == "syncbn>SyncBatchNormalization"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()


TRAIN = """
import json, sys, time
from pathlib import Path
import keras, numpy as np, tensorflow as tf
import syncbn
from tests.syncbn import test_interchange as files

directory = Path(sys.argv[1])
ranks = syncbn.init("horovod")
keras.utils.set_random_seed(4)
model = keras.Sequential([
    keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, use_bias=False),
    syncbn.SyncBatchNormalization(communicator="horovod", zero_debias_moving_mean=True),
    keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2),
])
model.compile(syncbn.DistributedOptimizer(keras.optimizers.Adam(0.01)), "mse")
images = np.random.default_rng(ranks.rank).normal(size=(12, 6, 6, 3)).astype("float32")
model.fit(images, images.mean((1, 2))[:, :2], batch_size=4, verbose=0)
if ranks.rank == 0:
    time.sleep(2)  # the other rank has left the job by now, which must not disturb this one
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")
    model.export(directory / "exported", verbose=False)
inputs = np.load(directory / "inputs.npy")
print(json.dumps({
    "bits": files.bits(model),
    "outputs": model.predict(inputs, verbose=0).tolist(),
    "training": sorted(files.communicating(files.operations_of_call(model, inputs, True))),
    "inference": sorted(files.communicating(files.operations_of_call(model, inputs, False))),
}))
"""

WITHOUT_HOROVOD = """
import json, sys
from pathlib import Path
import numpy as np, tensorflow as tf

directory = Path(sys.argv[1])
report = {}
try:
    import horovod
except ImportError as error:
    report["horovod"] = str(error)
inputs = np.load(directory / "inputs.npy")
# First with nothing but TensorFlow.
exported = tf.saved_model.load(str(directory / "exported"))
report["served"] = exported.serve(inputs).numpy().tolist()
assert "syncbn" not in sys.modules

import keras, syncbn
from tests.syncbn import test_interchange as files

model = keras.saving.load_model(directory / "model.keras")
report["bits"] = files.bits(model)
report["outputs"] = model.predict(inputs, verbose=0).tolist()
report["communicator"] = model.layers[1].communicator
before = model.layers[1].moving_mean.numpy()
model.fit(inputs, inputs.mean((1, 2))[:, :2], verbose=0)  # alone, it trains on
report["trains"] = bool(np.any(before != model.layers[1].moving_mean.numpy()))
model.load_weights(directory / "model.weights.h5")
report["weights"] = files.bits(model)
model.export(directory / "again", verbose=False)
for name in ("exported", "again"):
    report[name] = sorted(files.communicating(files.operations_of_export(directory / name)))
folded = syncbn.fold_batchnorm(model)
report["folded"] = folded.predict(inputs, verbose=0).tolist()
report["reverted"] = files.bits(syncbn.revert_sync_batchnorm(model))
print(json.dumps(report))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
@pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not built")
def test_model_of_a_horovod_job_lives_on_without_horovod(
    mpirun: Launcher,
    single_process: Launcher,
    script: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(9).normal(size=(3, 6, 6, 3)))
    inputs = np.load(tmp_path / "inputs.npy").astype("float32")
    np.save(tmp_path / "inputs.npy", inputs)
    first, second = mpirun(
        2, script(TRAIN), [str(tmp_path)], environment={"PYTHONPATH": "."}, timeout=100
    ).json()
    assert first["bits"] == second["bits"]
    assert first["training"]  # the look at the graph does find communication
    assert first["inference"] == []

    shadow = tmp_path / "shadow"
    (shadow / "horovod").mkdir(parents=True)
    (shadow / "horovod" / "__init__.py").write_text("raise ImportError('Horovod is not here')\n")
    (alone,) = single_process(
        1,
        script(WITHOUT_HOROVOD),
        [str(tmp_path)],
        environment={"PYTHONPATH": f"{shadow}:."},
        timeout=90,
    ).json()
    assert alone["horovod"] == "Horovod is not here"
    for key in ("served", "outputs", "folded"):
        np.testing.assert_allclose(alone[key], first["outputs"], 1e-5, 1e-6)
    assert alone["bits"] == alone["weights"] == first["bits"]
    assert alone["communicator"] == "horovod"
    assert alone["trains"]
    assert alone["exported"] == alone["again"] == []
    assert alone["reverted"] == first["bits"][:5] + first["bits"][7:]  # but for the debiasing's two
