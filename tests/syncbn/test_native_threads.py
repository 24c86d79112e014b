"""The native operations divide large tensors among as many threads as TensorFlow uses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from syncbn import native
from tests.processes import Launcher

_PROGRAM = """
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import tensorflow as tf
from syncbn.moments import Layout
from tests.syncbn.test_normalize import by_native, check

tf.config.threading.set_intra_op_parallelism_threads(3)
random = np.random.default_rng(3)
results = []
for axis, shape in ((3, (7, 40, 40, 64)), (1, (7, 64, 40, 40))):  # 10 parts by size, 7 rows
    x = (1000 + random.normal(size=shape)).astype("float32")
    check(by_native, x, axis, 2e-6)
    ones, zeros = tf.ones(64), tf.zeros(64)
    def step(_):
        y, m = by_native(tf.constant(x), ones, zeros, Layout(4, axis))
        return [y.numpy(), m.mean.numpy(), m.variance.numpy()]
    once = step(0)
    with ThreadPoolExecutor(4) as pool:  # more concurrent calls than threads
        results.append(all(
            np.array_equal(one, other)
            for again in pool.map(step, range(24))
            for one, other in zip(once, again)
        ))
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print(json.dumps([*results, names.count("syncbn")]))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(100)
def test_three_threads_agree_with_the_oracle_and_repeat_bit_by_bit(
    single_process: Launcher, script: Callable[[str], Path]
) -> None:
    if native.operations() is None:
        pytest.skip("no C++ compiler: python -m syncbn.native.build says more")
    result = single_process(1, script(_PROGRAM), timeout=90)
    assert result.json() == [[True, True, 2]]  # the third thread is the caller
