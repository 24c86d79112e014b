"""Files of a Horovod job on a machine without Horovod."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Launcher, python_path
from tests.requirements import require_horovod

TRAIN = """
import json, sys, time
from pathlib import Path
import keras, numpy as np, tensorflow as tf
import syncbn
from tests.syncbn.graph_operations import communicating, operations_of_call
from tests.syncbn.model_comparison import bits

directory = Path(sys.argv[1])
communicator = syncbn.init("horovod")
keras.utils.set_random_seed(4)
model = keras.Sequential([
    keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, use_bias=False),
    syncbn.SyncBatchNormalization(communicator="horovod", zero_debias_moving_mean=True),
    keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2),
])
model.compile(syncbn.DistributedOptimizer(keras.optimizers.Adam(0.01)), "mse")
images = np.random.default_rng(communicator.rank).normal(size=(12, 6, 6, 3)).astype("float32")
model.fit(images, images.mean((1, 2))[:, :2], batch_size=4, verbose=0)
if communicator.rank == 0:
    time.sleep(2)  # the other rank has exited by now, which must not affect this one
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")
    model.export(directory / "exported", verbose=False)
inputs = np.load(directory / "inputs.npy")
print(json.dumps({
    "bits": bits(model),
    "outputs": model.predict(inputs, verbose=0).tolist(),
    "training": sorted(communicating(operations_of_call(model, inputs, True))),
    "inference": sorted(communicating(operations_of_call(model, inputs, False))),
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
# First with TensorFlow only.
exported = tf.saved_model.load(str(directory / "exported"))
report["served"] = exported.serve(inputs).numpy().tolist()
assert "syncbn" not in sys.modules

import keras, syncbn
from tests.syncbn.graph_operations import communicating, operations_of_export
from tests.syncbn.model_comparison import bits

model = keras.saving.load_model(directory / "model.keras")
report["bits"] = bits(model)
report["outputs"] = model.predict(inputs, verbose=0).tolist()
report["communicator"] = model.layers[1].communicator
before = model.layers[1].moving_mean.numpy()
model.fit(inputs, inputs.mean((1, 2))[:, :2], verbose=0)  # training continues in one process
report["trains"] = bool(np.any(before != model.layers[1].moving_mean.numpy()))
model.load_weights(directory / "model.weights.h5")
report["weights"] = bits(model)
model.export(directory / "again", verbose=False)
for name in ("exported", "again"):
    report[name] = sorted(communicating(operations_of_export(directory / name)))
folded = syncbn.fold_batchnorm(model)
report["folded"] = folded.predict(inputs, verbose=0).tolist()
report["reverted"] = bits(syncbn.revert_sync_batchnorm(model))
print(json.dumps(report))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_model_of_a_horovod_job_works_without_horovod(
    mpirun: Launcher,
    single_process: Launcher,
    script: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    require_horovod()
    np.save(tmp_path / "inputs.npy", np.random.default_rng(9).normal(size=(3, 6, 6, 3)))
    inputs = np.load(tmp_path / "inputs.npy").astype("float32")
    np.save(tmp_path / "inputs.npy", inputs)
    first, second = mpirun(2, script(TRAIN), [str(tmp_path)], timeout=100).json()
    assert first["bits"] == second["bits"]
    assert first["training"]  # the graph is searched correctly
    assert first["inference"] == []

    shadow = tmp_path / "shadow"
    (shadow / "horovod").mkdir(parents=True)
    (shadow / "horovod" / "__init__.py").write_text("raise ImportError('Horovod is not here')\n")
    (alone,) = single_process(
        1,
        script(WITHOUT_HOROVOD),
        [str(tmp_path)],
        environment={"PYTHONPATH": python_path(shadow)},
        timeout=90,
    ).json()
    assert alone["horovod"] == "Horovod is not here"
    for key in ("served", "outputs", "folded"):
        np.testing.assert_allclose(alone[key], first["outputs"], 1e-5, 1e-6)
    assert alone["bits"] == alone["weights"] == first["bits"]
    assert alone["communicator"] == "horovod"
    assert alone["trains"]
    assert alone["exported"] == alone["again"] == []
    assert (
        alone["reverted"] == first["bits"][:5] + first["bits"][7:]
    )  # without the two weights of debiasing
