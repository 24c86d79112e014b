"""The overhead of metrics: the same training steps, alternately with and without them.

mpirun -np 2 python benchmarks/metrics.py [--model resnet18] [--json FILE]

"Watched" is the default of `launcher.train` under a launcher: every collective is timed, the page
is updated, served and written to snapshots, windows are exchanged, metrics.jsonl is written.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.train.config import TrainConfig, load_config
from launcher.train.environment import load_tensorflow

load_tensorflow()

import keras  # noqa: E402 - after TensorFlow's threads are configured
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from launcher.heartbeat import Heartbeat  # noqa: E402
from launcher.train.coordination import join  # noqa: E402
from launcher.train.data import load_dataset  # noqa: E402
from launcher.train.models import build_model  # noqa: E402
from launcher.train.observers.assemble import assemble  # noqa: E402
from launcher.train.observers.base import Observer, RunStarted, StepDone  # noqa: E402
from launcher.train.observers.exporter import Exporter  # noqa: E402
from launcher.train.optimizer import make_optimizer  # noqa: E402
from launcher.train.replicas import Replicas  # noqa: E402
from launcher.train.steps import Steps  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="can be repeated")
    parser.add_argument("--turns", type=int, default=15, help="turns with and without metrics each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(model, options.turns) for model in options.model or MODELS]
    if results[0]["rank"] == 0:
        table = Table("model", "step", "watched", "overhead per step", "share", title="Overhead")
        for result in results:
            for clock in ("wall", "processor"):
                plain, watched = (result[f"{kind}_{clock}"] for kind in ("plain", "watched"))
                median = statistics.median(plain)
                # Compares turns next to each other, so that other load cancels out.
                share = statistics.median(w / p for w, p in zip(watched, plain, strict=True)) - 1
                table.add_row(
                    f"{result['model']}, {clock} time",
                    f"{median * 1e3:.2f} ms",
                    f"{statistics.median(watched) * 1e3:.2f} ms",
                    f"{share * median * 1e6:+.0f} µs",
                    f"{share:+.2%}",
                )
        Console().print(table)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")


# Steps per turn, by model.
MODELS = {"cnn": 100, "resnet18": 8}


def measure(model_name: str, turns_of_each: int) -> dict[str, Any]:
    """Seconds per step with and without metrics, wall and processor time, alternately."""
    steps = MODELS.get(model_name, 20)
    config = load_config({"model": model_name, "metrics_port": 0})
    communicator = join(config.backend)
    output = Path(tempfile.mkdtemp(prefix="measuring-"))
    os.environ["LAUNCHER_RUN_DIR"] = str(output)
    data = load_dataset(config.dataset)
    keras.utils.set_random_seed(0)

    def stepper() -> tuple[keras.Model, Steps]:
        model = build_model(config.model, data.shape, data.classes)
        optimizer = make_optimizer(config.optimizer, config.learning_rate)
        optimizer.build(model.trainable_variables)
        return model, Steps(
            model, optimizer, communicator, Replicas(), batch_size=config.batch_size
        )

    features, labels = data.train.read(np.arange(config.batch_size))
    _, unwatched = stepper()
    unwatched.train(features, labels, False, len(labels))  # traced before telemetry starts
    exporter = Exporter(0, config.metrics_host, None)
    names = {"model": config.model, "dataset": config.dataset, "norm": config.norm}
    exporter.joined(communicator, output, 0.0, names)
    model, watching = stepper()
    heartbeat = Heartbeat(output / f"heartbeat-{communicator.rank}")
    options = config.model_dump(mode="json")
    observers = assemble(
        model, communicator, output, heartbeat, exporter, options=options, norm=config.norm
    )
    observers.on_start(_run(config, communicator.rank, communicator.size, output))
    watching.train(features, labels, False, len(labels))

    count = 0

    def turn(steps_of: Steps, observer: Observer) -> tuple[float, float]:
        nonlocal count
        used = time.process_time()
        began = started = time.perf_counter()
        for _ in range(steps):
            status = steps_of.train(features, labels, False, len(labels))
            count += 1
            now = time.perf_counter()
            seconds, started = now - started, now
            loss, correct, rows, *_ = status
            observer.on_step(
                StepDone(0, count, loss, correct, int(rows), 0.1, seconds, len(labels), 0.0)
            )
        return (time.perf_counter() - began) / steps, (time.process_time() - used) / steps

    plain: list[tuple[float, float]] = []
    watched: list[tuple[float, float]] = []
    order: list[tuple[list[tuple[float, float]], Callable[[], tuple[float, float]]]] = [
        (plain, lambda: turn(unwatched, Observer())),
        (watched, lambda: turn(watching, observers)),
    ]
    for block in range(turns_of_each + 1):
        for turns, run in order if block % 2 else reversed(order):
            seconds = run()
            if block:  # the first turn warms up
                turns.append(seconds)
    return {
        "model": model_name,
        "rank": communicator.rank,
        "ranks": communicator.size,
        "backend": communicator.name,
        "plain_wall": [wall for wall, _ in plain],
        "plain_processor": [processor for _, processor in plain],
        "watched_wall": [wall for wall, _ in watched],
        "watched_processor": [processor for _, processor in watched],
    }


def _run(config: TrainConfig, rank: int, size: int, output: Path) -> RunStarted:
    return RunStarted(
        model=config.model,
        dataset=config.dataset,
        parameters=0,
        rank=rank,
        world_size=size,
        backend="mpi",
        norm=config.norm,
        epochs=config.epochs,
        epoch=0,
        step=0,
        steps_per_epoch=100,
        output=output,
    )


if __name__ == "__main__":
    main()
