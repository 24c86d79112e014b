"""One real rank of the study: trains on its part; rank 0 saves the weights of each norm.

mpirun -np 2 python -m tests.benchmarks.small_batch_program DIRECTORY
"""

import sys
from pathlib import Path

from benchmarks.small_batch import training  # first: configures TensorFlow's threads

import keras  # isort: skip
import numpy as np

import syncbn
from benchmarks.small_batch.plan import Norm, Plan, Run, learning_rates, sample_numbers

# Learning rates high enough to change the weights in eight steps.
PLAN = Plan(samples=64, peak_rate=1.0)
NORMS: tuple[Norm, ...] = ("sync", "local")


def run_of(norm: Norm) -> Run:
    """Sorted by class, since local statistics differ most there."""
    return Run(world=2, batch=4, norm=norm, sharding="by-class", seed=1)


def main() -> None:
    communicator = syncbn.init("mpi")
    data = training.load_data(PLAN.held_out)
    train = training.arrays(data.train)
    for norm in NORMS:
        run = run_of(norm)

        def layer(name: str, run: Run = run) -> keras.layers.Layer:
            return syncbn.SyncBatchNormalization(
                momentum=run.momentum, synchronized=run.norm == "sync", name=name
            )

        model = training.build_model(data, run, run.seed, layer)
        optimizer = syncbn.DistributedOptimizer(training.make_optimizer(model))
        steps = training.compiled_steps(model, optimizer, train)
        numbers = sample_numbers(run, train[1], PLAN.samples)
        steps(numbers[:, communicator.rank], learning_rates(PLAN, run))
        if communicator.rank == 0:
            np.savez(Path(sys.argv[1]) / f"{norm}.npz", *model.get_weights())


if __name__ == "__main__":
    main()
