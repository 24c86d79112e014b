"""Statistics of blocks of samples: `virtual_batch_size`."""

import numpy as np

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    CHANNELS,
    EPSILON,
    Check,
    Report,
    make_batch,
    make_layer,
    one_step,
)
from tests.syncbn.worlds import World


def ghost(weighted: bool) -> Check:
    def check(world: World) -> list[Report]:
        """Blocks of two samples; the moving statistics are the average over all blocks."""
        batch = make_batch(world, (2, CHANNELS))
        layer = make_layer(world, batch.x.shape, virtual_batch_size=2, bessel_correction=True)
        generator = np.random.default_rng(3)
        weights = generator.choice([0.5, 1.0, 2.0], size=len(batch.x)) if weighted else None
        if weights is not None:
            weights[:2] = 0.0  # An empty block does not affect the average.
        blocks = [
            oracle.normalize(
                batch.x[i : i + 2],
                batch.dy[i : i + 2],
                layer.gamma.numpy(),
                layer.beta.numpy(),
                -1,
                EPSILON,
                None if weights is None else weights[i : i + 2, None, None],
            )
            for i in range(0, len(batch.x), 2)
        ]
        joined = oracle.Normalized(
            outputs=np.concatenate([block.outputs for block in blocks]),
            dx=np.concatenate([block.dx for block in blocks]),
            dgamma=np.concatenate([block.dgamma for block in blocks]),
            dbeta=np.concatenate([block.dbeta for block in blocks]),
            moments=oracle.moments(batch.x),
        )
        moments = [block.moments for block in blocks if block.moments.count[0] > 0]
        mean = np.mean([m.mean for m in moments], axis=0)
        count = np.mean([m.count for m in moments], axis=0)
        variance = np.mean([m.variance for m in moments], axis=0) * count / (count - 1.0)
        extra = {} if weights is None else {"batch_weights": weights}
        return one_step(world, batch, layer, joined, moving=(mean, variance), per_sample=extra)

    return check
