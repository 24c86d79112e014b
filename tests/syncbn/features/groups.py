"""Statistics of groups of ranks, `group_size`, and of single ranks."""

from collections.abc import Callable

import numpy as np

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    CHANNELS,
    Batch,
    Check,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    train_step,
)
from tests.syncbn.worlds import World


def _groups(size_of_group: Callable[[int], int]) -> Check:
    def check(world: World) -> list[Report]:
        """Each block of ranks has separate statistics."""
        k = size_of_group(world.size)
        batch = make_batch(world)
        layer = make_layer(world, batch.x.shape, group_size=k)
        ledger = Ledger(world)
        runner = world.compile(train_step(layer), graph=True)
        arguments = [[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)]
        results = runner(arguments)
        values = zip(
            world.values(layer.moving_mean), world.values(layer.moving_variance), strict=True
        )
        for place, (rank, moving) in enumerate(zip(world.held, values, strict=True)):
            first = rank // k * k
            rows = slice(batch.cuts[first], batch.cuts[first + k])
            cuts = tuple(c - batch.cuts[first] for c in batch.cuts[first : first + k + 1])
            block = Batch(batch.x[rows], batch.dy[rows], cuts)
            exact = exact_results(layer, block)
            ours = results[place]
            for name in ("outputs", "dx"):
                local = block.shard(rank - first, getattr(exact, name))
                ledger.compare(name, place, ours[name], local)
            ledger.compare("moving_mean", place, moving[0], 0.25 * exact.moments.mean)
            variance = oracle.move(np.ones(CHANNELS), exact.moments.variance, 0.75)
            ledger.compare("moving_variance", place, moving[1], variance)
        return ledger.reports

    return check


def group_of_one(world: World) -> list[Report]:
    return _groups(lambda size: 1)(world)


def group_of_all(world: World) -> list[Report]:
    return _groups(lambda size: size)(world)


def two_groups(world: World) -> list[Report]:
    """Half of the ranks each; worlds of odd size have one group."""
    return _groups(lambda size: size // 2 if size % 2 == 0 else size)(world)


def not_synchronized(world: World) -> list[Report]:
    """`synchronized=False` uses the statistics of each rank."""
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, synchronized=False)
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    results = runner([[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)])
    for place, rank in enumerate(world.held):
        alone = Batch(batch.shard(rank), batch.shard(rank, batch.dy), (0, len(batch.shard(rank))))
        exact = exact_results(layer, alone)
        ledger.compare("outputs", place, results[place]["outputs"], exact.outputs)
        ledger.compare("dx", place, results[place]["dx"], exact.dx)
    return ledger.reports
