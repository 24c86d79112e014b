"""Four logical CPU devices, as replicas of a MirroredStrategy within the test process.

Configured at import, because TensorFlow must not have run any operation before.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import tensorflow as tf

from syncbn.legacy import default_store, store
from tests.syncbn.runs import Runs

_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    _CPU, [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The reports of every world, each created once per session."""
    with ExitStack() as stack:
        yield Runs(tmp_path_factory.mktemp, stack)


@pytest.fixture
def fresh_layers() -> Iterator[None]:
    """Resets the layers that functions of `syncbn.legacy` have created."""
    default_store().clear()
    store._explained.clear()
    yield
    default_store().clear()
