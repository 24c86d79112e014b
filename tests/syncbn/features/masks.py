"""Some or all positions masked, with numbers, NaN or infinity in them."""

from collections.abc import Callable

import numpy as np

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    CHANNELS,
    Check,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    train_step,
)
from tests.syncbn.worlds import World


def masked(mask_of: Callable[[np.ndarray], np.ndarray], poison: float | None) -> Check:
    def check(world: World) -> list[Report]:
        """Masked positions do not affect results, whatever their values."""
        batch = make_batch(world, (4, CHANNELS))
        mask = mask_of(np.random.default_rng(6).uniform(size=batch.x.shape[:2]))
        if poison is not None:
            batch.x[~mask] = poison
        layer = make_layer(world, batch.x.shape)
        exact = exact_results(layer, batch, weights=mask[..., None])
        ledger = Ledger(world)
        runner = world.compile(train_step(layer, "mask"), graph=True)
        results = runner(
            [[batch.shard(r, v) for v in (batch.x, batch.dy, mask)] for r in range(world.size)]
        )
        axes = (0, 1)
        for place, (rank, ours) in enumerate(zip(world.held, results, strict=True)):
            seen = batch.shard(rank, mask)[..., None] | (poison is None)
            for name, joined in (("outputs", exact.outputs), ("dx", exact.dx)):
                expected = np.where(seen, batch.shard(rank, joined), 0.0)
                ledger.compare(name, place, np.where(seen, ours[name], 0.0), expected)
            if poison is not None:
                # Masked rows still contribute to the gradient of β, but not to that of γ.
                unseen = np.where(seen, 0.0, ours["dx"])
                if np.isfinite(poison):
                    unseen = np.where(np.isfinite(unseen), 0.0, 1.0)
                ledger.compare("dx of the masked", place, unseen, np.zeros(unseen.shape))
            local = np.where(seen, batch.shard(rank, exact.dgamma), 0.0).sum(axis=axes)
            ledger.compare("dgamma", place, ours["dgamma"], local)
            ledger.compare(
                "dbeta", place, ours["dbeta"], batch.shard(rank, batch.dy).sum(axis=axes)
            )
        empty = not mask.any()
        ledger.variables(
            moving_mean=(layer.moving_mean, (not empty) * 0.25 * exact.moments.mean),
            moving_variance=(
                layer.moving_variance,
                np.ones(CHANNELS)
                if empty
                else oracle.move(np.ones(CHANNELS), exact.moments.variance, 0.75),
            ),
        )
        return ledger.reports

    return check
