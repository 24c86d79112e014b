"""Programs that save a model and train what they load."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import syncbn
from syncbn import DistributedOptimizer
from syncbn.callbacks import WarmUpLearningRate
from tests.syncbn.equal_models import models
from tests.syncbn.equal_models.models import ROWS, rows
from tests.syncbn.equal_models.styles import compiled, fit, policy, state, variant


def _file(rank: int, name: str) -> str:
    return str(Path(tempfile.mkdtemp()) / f"{name}-{rank}.keras")


@variant
def saved_and_loaded(rank: int) -> list[Any]:
    """Each rank saves and loads its own file; the distribution and its options are kept."""
    optimizer = DistributedOptimizer(
        keras.optimizers.Adam(0.01), backward_passes_per_step=2, compression="float16"
    )
    model = fit(compiled(syncbn.convert_sync_batchnorm(models.built()), optimizer), rank)
    file = _file(rank, "ours")
    model.save(file)
    loaded = keras.models.load_model(file)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    assert int(loaded.optimizer.iterations) == int(optimizer.iterations) > 0
    x, y = rows(rank)
    loaded.fit(x, y, batch_size=ROWS, verbose=0)
    return state(loaded)


@variant
def saved_by_others_and_loaded(rank: int) -> list[Any]:
    model = compiled(models.without_norm(), keras.optimizers.Adam(0.01))
    model.build((None, 4))
    file = _file(rank, "theirs")
    model.save(file)
    return state(fit(syncbn.load_model(file), rank))


@variant
def loaded_with_loss_scaling(rank: int) -> list[Any]:
    with policy("mixed_float16"):
        model = fit(compiled(models.built()), rank)
        file = _file(rank, "scaled")
        model.save(file)
        return state(fit(syncbn.load_model(file), rank))


@variant
def loaded_with_weighted_rows(rank: int) -> list[Any]:
    model = fit(syncbn.weigh_rows(compiled(models.built())), rank)
    file = _file(rank, "weighted")
    model.save(file)
    forgotten = keras.models.load_model(file)
    with pytest.raises(ValueError, match=r"weigh_rows\(model\)"):
        fit(forgotten, rank)
    return state(fit(syncbn.load_model(file), rank))


@variant
def loaded_after_warm_up(rank: int) -> list[Any]:
    model = fit(compiled(models.built()), rank, WarmUpLearningRate(epochs=1))
    file = _file(rank, "warm")
    model.save(file)
    again = fit(syncbn.load_model(file), rank, WarmUpLearningRate(epochs=1))
    assert np.isclose(float(again.optimizer.learning_rate), 0.1), "raised twice"
    return state(again)


@variant
def resumed_on_the_first_rank(rank: int) -> list[Any]:
    """Only rank 0 has the checkpoint, with its optimizer's state."""
    old = fit(compiled(models.built()), rank)
    file = _file(rank, "checkpoint")
    old.save(file)
    model = keras.models.load_model(file) if rank == 0 else compiled(models.built())
    fit(model, rank, initial_epoch=1, epochs=3)
    assert int(model.optimizer.iterations) == 2 * 4 + 2 * 4, "the state of rank 0 was not taken"
    return state(model)
