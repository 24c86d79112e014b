"""Very small batches: one row in the world, or one per rank."""

from tests.syncbn.features.setting import (
    CHANNELS,
    Report,
    exact_results,
    make_batch,
    make_layer,
    one_step,
)
from tests.syncbn.worlds import World


def count_of_one(world: World) -> list[Report]:
    """A single sample in the world: variance 0, outputs β, gradients 0, no error."""
    batch = make_batch(world, rows=lambda rank: int(rank == 0))
    layer = make_layer(world, (None, CHANNELS), bessel_correction=True)
    exact = exact_results(layer, batch)
    return one_step(world, batch, layer, exact, graph=True)


def one_row_each(world: World) -> list[Report]:
    """A single value on every rank, enough in the world."""
    batch = make_batch(world, rows=lambda rank: 1)
    layer = make_layer(world, (None, CHANNELS))
    return one_step(world, batch, layer, exact_results(layer, batch), graph=True)
