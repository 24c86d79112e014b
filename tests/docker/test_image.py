"""What the image holds, what it lacks, and one container that trains alone."""

import json
import re

import pytest

from tests.docker.containers import Engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240, func_only=True)]

# What two ranks find inside, and which operations compute a training step of the layer there.
_LOOK = """
import json, os, shutil
import tensorflow as tf
import syncbn

rank = syncbn.init("horovod").rank
layer = syncbn.SyncBatchNormalization()
layer.build((None, 4))

@tf.function
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, training=True) ** 2)
    return tape.gradient(y, x)

step(tf.random.normal([8, 4]))
graph = step.get_concrete_function(tf.TensorSpec([8, 4])).graph
forbidden = ("gcc", "g++", "make", "cmake", "ld", "sshd")
print(json.dumps({
    "rank": rank,
    "user": os.getuid(),
    "tools": [name for name in forbidden if shutil.which(name)],
    "sources": os.listdir("/src"),
    "operations": sorted({op.type for op in graph.get_operations() if "Syncbn" in op.type}),
}))
"""


def test_the_image_has_our_operations_but_no_compiler_and_no_root(engine: Engine) -> None:
    words = ["run", "-np", "2", "--backend", "horovod", "--", "python", "-c", _LOOK]
    container = engine.start("look", *words, options=("--volume", f"{engine.volume()}:/runs"))
    assert engine.wait(container, 180) == 0, engine.log(container)
    log = engine.log(container)
    assert "slower TensorFlow operations" not in log
    found = [json.loads(line) for line in re.findall(r"^\[\d\] (\{.*\})$", log, re.MULTILINE)]
    assert sorted(one["rank"] for one in found) == [0, 1], log
    for one in found:
        assert (one["user"], one["tools"], one["sources"]) == (1000, [], [])
        assert {"SyncbnNormalize", "SyncbnInputGradient"} <= {*one["operations"]}
    health = json.loads(engine("image", "inspect", engine.image))[0]["Config"]["Healthcheck"]
    assert health["Test"] == ["CMD", "launcher", "health"]


def test_one_container_trains_on_two_ranks_without_root_on_a_read_only_disk(
    engine: Engine,
) -> None:
    words = ["run", "-np", "2", "--backend", "horovod", "--"]
    words += ["python", "-m", "launcher.train", "--epochs", "1", "--model", "dnn"]
    container = engine.start("alone", *words, options=("--volume", f"{engine.volume()}:/runs"))
    assert engine.wait(container, 180) == 0, engine.log(container)
    assert "2 ranks over horovod" in engine.log(container)
    state = engine.inspect(container)
    assert state["Config"]["User"] == "1000:0"
    assert state["HostConfig"]["ReadonlyRootfs"] is True
