"""A run that ends anywhere and resumes reaches the weights of an uninterrupted run, bit for bit.

One process tells of every moment of a run (`Life`): each piece of a batch, each step, before and
after an evaluation, before, within and after the writing of a checkpoint. The run is broken off at
each of them in turn, and stopped after each step; what goes on has nothing but the files. Real
ranks that are really killed stand in tests/end_to_end/test_train_survival.py.
"""

from collections.abc import Callable, Iterator
from functools import partial
from operator import le
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import pytest

import launcher.train.checkpoint
from launcher.atomic import replace_file
from launcher.train import program
from launcher.train.config import TrainConfig, load_config
from launcher.train.data.dataset import ArrayExamples, DataSet
from launcher.train.observers.base import EpochDone, Observer, RunStarted, SaveDone, StepDone
from launcher.train.optimizer import make_optimizer
from launcher.train.replicas import Replicas
from launcher.train.steps import Steps
from syncbn import SyncBatchNormalization
from syncbn.communicators.local import LocalCommunicator

ALONE = LocalCommunicator()
BASE = {"epochs": 2, "batch_size": 4, "resume": True, "learning_rate": 0.05}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batches": 2, "checkpoint_steps": 2, "optimizer": "sgd"},
    "half": {"precision": "mixed_float16", "schedule": "step", "evaluate_every": 2},
    "skips": {"on_nan": "skip", "early_stopping": 1, "epochs": 4, "weight_decay": 0.01},
}


class BrokenOffError(BaseException):
    """The end of a process, wherever it is."""


class Life(Observer):
    """Numbers the moments of a run, and ends it at the moment `end`."""

    def __init__(self, end: int | None = None) -> None:
        self.moments: list[str] = []
        self.epochs: list[tuple[float, ...]] = []
        self.summary: dict[str, Any] = {}
        self.step = 0
        self._end = end

    def pass_through(self, moment: str) -> None:
        self.moments.append(moment)
        if self._end == len(self.moments) - 1:
            raise BrokenOffError(moment)

    def on_start(self, run: RunStarted) -> None:
        self.step = run.step

    def on_step(self, step: StepDone) -> None:
        self.step = step.step
        self.pass_through(f"step {step.step}")

    def on_evaluation(self, step: int) -> None:
        self.pass_through(f"evaluation after step {step}")

    def on_save(self, step: int) -> None:
        self.pass_through(f"before saving step {step}")

    def on_saved(self, save: SaveDone) -> None:
        self.pass_through(f"saved step {save.step}")

    def on_epoch(self, epoch: EpochDone) -> None:
        told = (epoch.epoch, epoch.step, epoch.loss, epoch.accuracy, epoch.learning_rate)
        self.epochs.append((*told, epoch.validation_loss or 0.0, epoch.validation_accuracy or 0.0))
        self.pass_through(f"end of epoch {epoch.epoch}")

    def on_end(self, summary: dict[str, Any]) -> None:
        self.summary = summary


class OneLifeAtATime:
    """The lock of an output directory ends with its process."""

    def settle(self, _: object) -> None:
        pass


class Machine:
    """The compiled parts of a run, which each life of it shares; nothing else is shared."""

    def __init__(self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.data = config, _data(spoiled=config.on_nan == "skip")
        keras.utils.set_random_seed(1)
        policy = config.precision
        self.model = keras.Sequential(
            [
                keras.layers.Input((2, 3, 1)),
                keras.layers.Flatten(dtype=policy),
                keras.layers.Dense(5, dtype=policy),
                SyncBatchNormalization(momentum=0.8, dtype=policy),
                keras.layers.Dropout(0.3, dtype=policy),
                keras.layers.Dense(3, dtype="float32"),
            ]
        )
        self.optimizer = make_optimizer(
            config.optimizer,
            config.learning_rate,
            weight_decay=config.weight_decay,
            loss_scaling=config.precision == "mixed_float16",
            communicator=ALONE,
        )
        self.optimizer.build(self.model.trainable_variables)
        self.steps = Steps(
            self.model,
            self.optimizer,
            ALONE,
            Replicas(),
            batch_size=config.batch_size,
            on_nan=config.on_nan,
            micro_batches=config.micro_batches,
        )
        self.initial = [variable.numpy() for variable in self.variables]
        for name, part in {
            "join": ALONE,
            "load_dataset": self.data,
            "build_model": self.model,
            "make_optimizer": self.optimizer,
            "Steps": self.steps,
            "OutputLock": OneLifeAtATime(),
            "start_rank_log": None,
        }.items():
            monkeypatch.setattr(program, name, lambda *_, part=part, **__: part)
        # It is built, and some build again what they have inside.
        monkeypatch.setattr(self.optimizer, "build", lambda _: None)
        monkeypatch.setattr(program, "assemble", lambda *_, **__: self.life)
        monkeypatch.setattr(program, "StopRequest", lambda: self)
        monkeypatch.setattr(launcher.train.checkpoint, "replace_file", self._write)
        for name in ("_train", "_accumulate"):
            if hasattr(self.steps, name):
                monkeypatch.setattr(self.steps, name, self._told(getattr(self.steps, name)))

    @property
    def variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    @property
    def state(self) -> list[bytes]:
        return [variable.numpy().tobytes() for variable in self.variables]

    def live(
        self, directory: Path, life: Life, stop: Callable[[int], bool] = lambda step: False
    ) -> int:
        """One process of the run, from its files to its exit code.

        `stop` says whether SIGTERM has come after so many steps.
        """
        self._be_born()
        self.life, self._stop = life, stop
        return program.run(self.config.model_copy(update={"output": directory}))

    def listen(self) -> None:
        """As of a `StopRequest`."""

    @property
    def requested(self) -> bool:
        return self._stop(self.life.step)

    def _be_born(self) -> None:
        """What a new process has: the weights of its seed, and no half of a step."""
        for variable, value in zip(self.variables, self.initial, strict=True):
            variable.assign(value)
        if hasattr(self.steps, "_pass_sums"):
            indices = range(len(self.model.trainable_variables))
            self.steps._pass_sums.apply(indices, lambda *_: None)
        if self.steps.guard is not None:  # nor a step that was skipped and is not counted yet
            self.steps._skipped = float(self.steps.guard.left_out)

    def _told(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any) -> Any:
            self.life.pass_through("before a batch")
            result = compute(*arguments)
            self.life.pass_through("after a batch")
            return result

        return told

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        def write_and_tell(file: BinaryIO) -> None:
            write(file)
            self.life.pass_through(f"within saving {path.name}")

        replace_file(path, write_and_tell)


def _data(spoiled: bool) -> DataSet:
    """Ten examples to train on: steps of 4, 4 and 2 rows."""
    generator = np.random.default_rng(3)
    features = generator.normal(size=(14, 2, 3, 1)).astype("float32")
    labels = generator.integers(0, 3, 14)
    if spoiled:
        features[5] = np.nan
    train, held = (
        ArrayExamples(features[part], labels[part]) for part in (slice(10), slice(10, 14))
    )
    return DataSet("some", train, held, (2, 3, 1), 3)


_SLOW = {"half", "skips"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(run, marks=[pytest.mark.slow] * (run in _SLOW)) for run in RUNS],
)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Machine(load_config({**BASE, **RUNS[request.param]}), monkeypatch)


@pytest.mark.timeout(600)
def test_a_run_that_ends_anywhere_resumes_to_the_same_weights(
    machine: Machine, tmp_path: Path
) -> None:
    whole = Life()
    assert machine.live(tmp_path / "whole", whole) == 0
    expected = machine.state
    steps = [moment for moment in whole.moments if moment.startswith("step ")]
    assert len(steps) >= 6
    for number, moment in enumerate(whole.moments):
        broken, second = tmp_path / f"broken-{number}", Life()
        with pytest.raises(BrokenOffError, match=moment):
            machine.live(broken, Life(number))
        assert machine.live(broken, second) == 0
        assert machine.state == expected, f"broken off at {moment}, moment {number}"
        _check_the_end(second, whole)


@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_after_any_step_resumes_to_the_same_weights(
    machine: Machine, tmp_path: Path
) -> None:
    whole = Life()
    assert machine.live(tmp_path / "whole", whole) == 0
    expected, last = machine.state, int(whole.epochs[-1][1])
    # Stopped once at each step; and at every step, so that each life has one.
    for number in range(last):
        second = Life()
        stopped = tmp_path / f"stopped-{number}"
        assert machine.live(stopped, Life(), partial(le, number)) == 143
        assert machine.live(stopped, second) == 0
        assert machine.state == expected, f"stopped after step {number + 1}"
        _check_the_end(second, whole)
    for _ in range(last):
        assert machine.live(tmp_path / "always", Life(), partial(le, 0)) == 143
    second = Life()
    assert machine.live(tmp_path / "always", second) == 0
    assert machine.state == expected, "stopped after every step"
    _check_the_end(second, whole)


def _check_the_end(life: Life, whole: Life) -> None:
    """The last process records the same epochs as the uninterrupted run."""
    assert life.epochs == whole.epochs[len(whole.epochs) - len(life.epochs) :]
    for name in ("accuracy", "loss", "steps", "stopped", "failure"):
        assert life.summary[name] == whole.summary[name], name
