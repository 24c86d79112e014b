"""One rank's run from its configuration to its summary: everything around the loop."""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from launcher.atomic import WriteError
from launcher.errors import LauncherError, UsageError
from launcher.heartbeat import Heartbeat
from launcher.runs.logs import RankLog
from launcher.train import memory, stopping
from launcher.train.checkpoint import CheckpointStore
from launcher.train.config import TrainConfig
from launcher.train.coordination import (
    PeerError,
    agree_on_output,
    join,
    leave_alone,
    together,
    weights_digest,
)
from launcher.train.data import DataSet, load_dataset
from launcher.train.data.order import steps_left
from launcher.train.divergence import DivergedError
from launcher.train.environment import is_elastic
from launcher.train.loop import Trainer
from launcher.train.models import build_model
from launcher.train.observers.assemble import assemble
from launcher.train.observers.base import RunStarted
from launcher.train.observers.exporter import Exporter
from launcher.train.optimizers import make_optimizer
from launcher.train.output_lock import OutputLock
from launcher.train.replicas import MirroredReplicas, Replicas
from launcher.train.resume import Resumed, find_checkpoint, share
from launcher.train.summary import summarize, write_summary
from launcher.train.train_state import Outcome, Position
from syncbn import native
from syncbn.communicators import Communicator
from syncbn.non_finite import ADVICE

_log = logging.getLogger(__name__)


def run_session(config: TrainConfig) -> int:
    """Trains as `config` says and returns the exit code of this rank."""
    stop = stopping.StopRequest()
    heartbeat = Heartbeat.from_environment()
    heartbeat.beat("starting")
    exporter = Exporter(config)
    began = time.perf_counter()
    try:
        communicator = join(config.backend)
        stop.listen()
        waited = time.perf_counter() - began
        replicas = make_replicas(
            config, communicator
        )  # before TensorFlow has initialised its devices
        output = agree_on_output(config, communicator)
        lock = OutputLock(output)
        lock.settle(communicator)  # before anything is written there
        _start_log(output, communicator)
        _log.info("statistics by %s", native.status())
        exporter.joined(communicator, output, waited)
        session = Session(config, communicator, replicas, output, lock, stop, heartbeat, exporter)
        return session.run()
    except PeerError:
        heartbeat.beat("leaving")
        raise


class Session:
    """What a rank holds for the whole run, whichever ranks it trains with."""

    def __init__(
        self,
        config: TrainConfig,
        communicator: Communicator,
        replicas: Replicas,
        output: Path,
        lock: OutputLock,
        stop: stopping.StopRequest,
        heartbeat: Heartbeat,
        exporter: Exporter,
    ) -> None:
        self._config, self._communicator, self._replicas = config, communicator, replicas
        self._output, self._lock, self._stop = output, lock, stop
        self._heartbeat, self._exporter = heartbeat, exporter
        self._store = CheckpointStore(output / "checkpoints", config.keep_checkpoints)
        self._notes: list[str] = []
        self._resumed: Resumed | None = None
        keras.config.set_dtype_policy(config.precision)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        # Different seeds on purpose: what makes the ranks equal is the broadcast, not luck.
        keras.utils.set_random_seed(config.seed + communicator.rank)
        self._data: DataSet = together(communicator, lambda: load_dataset(config))
        _check_rows(self._data, replicas)
        with replicas.scope():
            self._model = together(communicator, lambda: build_model(config, self._data))
            self._optimizer = make_optimizer(config)
            self._optimizer.build(self._model.trainable_variables)
        self._micro_batches = self._fit_memory()

    @property
    def _variables(self) -> list[object]:
        return [*self._model.variables, *self._optimizer.variables]

    def run(self) -> int:
        """Trains to the end, writes the summary, and returns the exit code."""
        position = self._resume()
        failure: LauncherError | None = None
        try:
            outcome = self._train(position)
        except (DivergedError, WriteError, PeerError) as error:
            if is_elastic() and not isinstance(error, DivergedError):
                raise  # which the other ranks know nothing of
            failure, outcome = error, Outcome(times=self._trainer.times)
        _log.info("weights %s", weights_digest(self._variables))
        summary = self._summarize(outcome, failure)
        try:
            together(self._communicator, lambda: self._write(summary))
        except (WriteError, PeerError) as error:
            if is_elastic():
                raise
            failure = failure or error
            summary = self._summarize(outcome, failure)
        self._observer.on_end(summary)
        if failure is not None:
            return self._leave(failure)
        return stopping.EXIT_CODE if outcome.stopped else 0

    def _summarize(self, outcome: Outcome, failure: LauncherError | None) -> dict[str, Any]:
        return summarize(
            self._config,
            self._trainer,
            outcome,
            self._output,
            backend=self._communicator.name if self._replicas.count == 1 else "tf",
            resumed_from=None if self._resumed is None else self._resumed.path,
            micro_batches=self._micro_batches,
            notes=self._notes,
            skipped_records=self._data.skipped,
            failure=failure and {"class": _class(failure), "message": str(failure)},
            kernels=asdict(native.status()),
        )

    def _write(self, summary: dict[str, Any]) -> None:
        if self._communicator.rank == 0:
            write_summary(summary, self._output)

    def _train(self, position: Position) -> Outcome:
        if not is_elastic():
            return self._run_guarded(self._make_trainer(position, lambda epoch_ended: None))
        from launcher.train import elastic

        state = elastic.KerasState(self._variables, position, self._communicator)
        return elastic.run_elastically(self._make_trainer, state, self._config.commit_steps)

    def _leave(self, failure: LauncherError) -> int:
        """The end of training that has failed on all ranks at once: one of them tells.

        Only that one fails for its own reason, to whoever reads the heartbeats of all.
        """
        rank = self._communicator.rank
        saved = self._store.paths()
        last = f"the last checkpoint, {saved[-1]}, is sound" if saved else "no checkpoint was saved"
        message = f"{failure}; {last}"
        tells = isinstance(failure, WriteError)
        if isinstance(failure, DivergedError):
            place = "" if rank == 0 else f"rank {rank}: "
            message = f"{place}diverged: {message}. {ADVICE}"
            tells = rank == failure.rank
        _log.error("%s", message)
        if tells:
            print(f"launcher.train: {message}", file=sys.stderr, flush=True)
        else:
            self._heartbeat.beat("leaving")
        self._communicator.barrier()  # A rank that leaves may take the others with it: tell first.
        return failure.exit_code

    def _fit_memory(self) -> int:
        if is_elastic() or self._config.on_oom == "stop":
            return self._config.micro_batches
        pieces, story = memory.fit_micro_batches(
            self._config, self._data, self._communicator, self._output
        )
        if story is not None:
            self._notes.append(story)
        return pieces

    def _resume(self) -> Position:
        """The position to start from, with the values of its checkpoint on rank 0."""
        config, communicator, store, variables = (
            self._config,
            self._communicator,
            self._store,
            self._variables,
        )
        found = together(
            communicator, lambda: find_checkpoint(config, store, variables, communicator)
        )
        self._resumed = share(found, config, communicator.size * self._replicas.count, communicator)
        if self._resumed is None:
            return Position()
        if found is not None:
            for variable, array in zip(variables, found[0].arrays, strict=True):
                variable.assign(array)  # type: ignore[attr-defined]
        self._notes.extend(self._resumed.notes)
        return Position(**self._resumed.meta["position"])

    def _make_trainer(self, position: Position, commit: Callable[[bool], None]) -> Trainer:
        """A trainer, and observers, for the ranks of this moment. No collectives."""
        config, communicator = self._config, self._communicator
        if is_elastic():  # where the writer may be another rank by now
            self._lock.settle(communicator)
        self._observer = assemble(
            config, self._model, communicator, self._output, self._heartbeat, self._exporter
        )
        self._trainer = trainer = Trainer(
            config,
            self._data,
            self._model,
            self._optimizer,
            communicator,
            self._replicas,
            self._store,
            self._observer,
            lambda: self._stop.requested,
            commit,
            position,
            self._micro_batches,
        )
        self._observer.on_start(self._started(trainer))
        return trainer

    def _run_guarded(self, trainer: Trainer) -> Outcome:
        rank, output = self._communicator.rank, self._output
        if self._communicator.size > 1:
            memory.watch_peers(rank, output)
        try:
            return trainer.run()
        except (DivergedError, WriteError, PeerError):
            raise  # all ranks leave
        except LauncherError as error:
            leave_alone(error, self._communicator)
        except (tf.errors.OpError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return memory.leave(error, rank, self._config, self._micro_batches, output)

    def _started(self, trainer: Trainer) -> RunStarted:
        config, position = self._config, trainer.position
        return RunStarted(
            model=config.model,
            dataset=config.dataset,
            parameters=int(self._model.count_params()),
            rank=self._communicator.rank,
            world_size=trainer.world_size,
            backend=self._communicator.name,
            norm=config.norm,
            epochs=config.epochs,
            epoch=position.epoch,
            step=position.step,
            steps_per_epoch=steps_left(
                len(self._data.train), 0, config.batch_size, trainer.world_size
            ),
            output=self._output,
            notes=tuple(self._notes),
            kernels=native.status().brief,
        )


def _check_rows(data: DataSet, replicas: Replicas) -> None:
    """A rank may be without rows in a step, a replica of a process may not."""
    if len(data.train) < replicas.count:
        raise UsageError(
            f"--replicas must not be more than the {len(data.train)} samples to train on. "
            f"Received: --replicas {replicas.count}"
        )


def make_replicas(config: TrainConfig, communicator: Communicator) -> Replicas:
    """The replicas `--replicas` asks for.

    Raises:
        UsageError: Several replicas in one of several processes, or on another backend than tf.
    """
    if config.replicas == 1:
        return Replicas()
    if communicator.size > 1:
        raise UsageError(
            f"--replicas is for a single process; this job has {communicator.size} with one "
            "replica each. "
            f"Received: --replicas {config.replicas}"
        )
    if config.backend not in ("auto", "tf"):
        raise UsageError(f"--replicas needs the tf backend. Received: --backend {config.backend}")
    if config.micro_batches > 1 or config.on_oom == "shrink":
        raise UsageError("micro-batches and --on-oom shrink need one replica per process")
    if config.on_nan == "skip":
        # The strategy sums the gradients behind the optimizer, where nobody can look at them.
        raise UsageError("--on-nan skip needs one replica per process: start ranks with mpirun")
    return MirroredReplicas(config.replicas)


def _class(failure: LauncherError) -> str:
    """In the words of the launcher."""
    if isinstance(failure, DivergedError):
        return "diverged"
    return "disk full" if isinstance(failure, WriteError) and failure.full else "error"


class _LogFile(logging.Handler):
    """A rank's log. A full disk costs lines of it, and nothing else."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._log = RankLog(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))


def _start_log(output: Path, communicator: Communicator) -> None:
    handler = _LogFile(output / "logs" / f"rank-{communicator.rank}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    tf.get_logger().setLevel(logging.WARNING)
    _log.info(
        "rank %d of %d over %s, process %d",
        communicator.rank,
        communicator.size,
        communicator.name,
        os.getpid(),
    )
