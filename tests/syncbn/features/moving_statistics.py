"""Options of the moving statistics: renorm, Bessel's correction, zero debiasing."""

import numpy as np

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    CHANNELS,
    EPSILON,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    one_step,
    train_step,
)
from tests.syncbn.worlds import World


def renorm(world: World) -> list[Report]:
    """Three steps; r and d are clipped in the first only."""
    clipping = {"rmax": 1.5, "rmin": 0.6, "dmax": 1.0}
    layer = make_layer(
        world, (None, CHANNELS), renorm=True, renorm_clipping=clipping, renorm_momentum=0.5
    )
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    mean, stddev = np.zeros(CHANNELS), np.ones(CHANNELS)
    tracked_mean, tracked_stddev = np.zeros(CHANNELS), np.ones(CHANNELS)
    for number in range(3):
        batch = make_batch(world, seed=number)
        now = oracle.moments(batch.x)
        r, d = oracle.renorm_correction(now, tracked_mean, tracked_stddev, EPSILON, clipping)
        results = runner([[batch.shard(k), batch.shard(k, batch.dy)] for k in range(world.size)])
        ledger.step(batch, results, exact_results(layer, batch, r=r, d=d), -1)
        deviation = np.sqrt(now.variance + EPSILON)
        mean, stddev = oracle.move(mean, now.mean, 0.75), oracle.move(stddev, deviation, 0.75)
        tracked_mean = oracle.move(tracked_mean, now.mean, 0.5)
        tracked_stddev = oracle.move(tracked_stddev, deviation, 0.5)
    ledger.variables(
        moving_mean=(layer.moving_mean, mean),
        moving_stddev=(layer.moving_stddev, stddev),
        moving_variance=(layer.moving_variance, stddev**2 - EPSILON),
        renorm_mean=(layer.renorm_mean, tracked_mean),
        renorm_stddev=(layer.renorm_stddev, tracked_stddev),
    )
    return ledger.reports


def bessel_correction(world: World) -> list[Report]:
    """The moving variance uses n/(n − 1) with the count over all ranks."""
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, bessel_correction=True)
    exact = exact_results(layer, batch)
    n = exact.moments.count[0]
    unbiased = exact.moments.variance * n / (n - 1.0)
    return one_step(world, batch, layer, exact, moving=(exact.moments.mean, unbiased))


def zero_debias(world: World) -> list[Report]:
    """The moving mean is the weighted average of the batches, without the initial zero."""
    layer = make_layer(world, (None, CHANNELS), zero_debias_moving_mean=True, momentum=0.99)
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=False)
    biased = np.zeros(CHANNELS)
    for number in range(1, 4):
        batch = make_batch(world, seed=number)
        runner([[batch.shard(k), batch.shard(k, batch.dy)] for k in range(world.size)])
        biased = oracle.move(biased, oracle.moments(batch.x).mean, 0.99)
        ledger.variables(moving_mean=(layer.moving_mean, biased / (1.0 - 0.99**number)))
    return ledger.reports
