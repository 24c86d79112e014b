"""A converted model is compiled, with loss, metrics and the state of the optimizer."""

import keras
import numpy as np
import pytest

from syncbn import DistributedOptimizer, convert_sync_batchnorm, weigh_rows
from tests.syncbn.model_comparison import assert_bitwise, example
from tests.syncbn.models import (
    sequential,
)


def test_compiled_model_comes_back_compiled_with_its_optimizer() -> None:
    model = sequential()
    model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    data = (example(model, 8), np.ones((8, 2), "float32"))
    model.fit(*data, verbose=0)
    converted = convert_sync_batchnorm(model)
    assert converted.compiled
    assert int(converted.optimizer.iterations) == 1
    assert float(converted.optimizer.learning_rate) == pytest.approx(0.02)
    old, new = ([v.numpy() for v in m.optimizer.variables] for m in (model, converted))
    assert_bitwise(new, old)
    assert "mae" in converted.evaluate(*data, verbose=0, return_dict=True)
    converted.fit(*data, verbose=0)
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("passes", [1, 2])
def test_distributed_optimizer_stays_distributed(passes: int) -> None:
    model = sequential()
    optimizer = DistributedOptimizer(
        keras.optimizers.Adam(0.02), backward_passes_per_step=passes, compression="bfloat16"
    )
    model.compile(optimizer, "mse")
    weigh_rows(model)
    data = (example(model, 8), np.ones((8, 2), "float32"))
    model.fit(*data, batch_size=4, verbose=0)
    converted = convert_sync_batchnorm(model)
    distributed = converted.optimizer
    assert [kind.__name__ for kind in type(distributed).__mro__][1] == "_Distributed"
    for name in ("_communicator", "_passes", "_average", "_wire"):
        assert getattr(distributed, name) == getattr(optimizer, name)
    assert int(distributed.iterations) == 2 // passes
    assert "train_step" in vars(converted)
    converted.fit(*data, batch_size=4, verbose=0)
    assert int(distributed.iterations) == 4 // passes


def test_loss_without_a_configuration_leaves_the_copy_uncompiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = sequential()
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(y - p))
    assert not convert_sync_batchnorm(model).compiled
    assert "is not compiled, call compile()" in caplog.text
    assert model.compiled
