"""One rank's run from its configuration to its summary: everything around the loop."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from launcher.errors import LauncherError, UsageError
from launcher.heartbeat import Heartbeat
from launcher.train import memory, stopping
from launcher.train.agreement import (
    PeerError,
    agree_on_output,
    join,
    leave_alone,
    together,
    weights_digest,
)
from launcher.train.checkpoint import CheckpointStore
from launcher.train.config import TrainConfig
from launcher.train.data import DataSet, load_dataset
from launcher.train.data.order import steps_left
from launcher.train.divergence import DivergedError
from launcher.train.environment import is_elastic
from launcher.train.loop import Trainer
from launcher.train.models import build_model
from launcher.train.observers import RunStarted
from launcher.train.optimizers import make_optimizer
from launcher.train.output_lock import OutputLock
from launcher.train.position import Outcome, Position
from launcher.train.replicas import MirroredReplicas, Replicas
from launcher.train.resume import Resumed, find_checkpoint, share
from launcher.train.summary import summarize, write_summary
from launcher.train.watch.assemble import assemble
from launcher.train.watch.exporter import Exporter
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
        ranks = join(config.backend)
        stop.listen()
        waited = time.perf_counter() - began
        replicas = make_replicas(config, ranks)  # before TensorFlow has initialised its devices
        output = agree_on_output(config, ranks)
        lock = OutputLock(output)
        lock.settle(ranks)  # before anything is written there
        _start_log(output, ranks)
        exporter.joined(ranks, output, waited)
        session = Session(config, ranks, replicas, output, lock, stop, heartbeat, exporter)
        return session.run()
    except PeerError:
        heartbeat.beat("leaving")
        raise


class Session:
    """What a rank holds for the whole run, whichever ranks it trains with."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Communicator,
        replicas: Replicas,
        output: Path,
        lock: OutputLock,
        stop: stopping.StopRequest,
        heartbeat: Heartbeat,
        exporter: Exporter,
    ) -> None:
        self._config, self._ranks, self._replicas = config, ranks, replicas
        self._output, self._lock, self._stop = output, lock, stop
        self._heartbeat, self._exporter = heartbeat, exporter
        self._store = CheckpointStore(output / "checkpoints", config.keep_checkpoints)
        self._notes: list[str] = []
        self._resumed: Resumed | None = None
        keras.config.set_dtype_policy(config.precision)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        # Different seeds on purpose: what makes the ranks equal is the broadcast, not luck.
        keras.utils.set_random_seed(config.seed + ranks.rank)
        self._data: DataSet = together(ranks, lambda: load_dataset(config))
        _check_rows(self._data, replicas)
        with replicas.scope():
            self._model = together(ranks, lambda: build_model(config, self._data))
            self._optimizer = make_optimizer(config)
            self._optimizer.build(self._model.trainable_variables)
        self._micro_batches = self._fit_memory()

    @property
    def _variables(self) -> list[object]:
        return [*self._model.variables, *self._optimizer.variables]

    def run(self) -> int:
        """Trains to the end, writes the summary, and returns the exit code."""
        position = self._resume()
        diverged: DivergedError | None = None
        try:
            outcome = self._train(position)
        except DivergedError as error:
            diverged, outcome = error, Outcome(times=self._trainer.times)
        _log.info("weights %s", weights_digest(self._variables))
        summary = summarize(
            self._config,
            self._trainer,
            outcome,
            self._output,
            backend=self._ranks.name if self._replicas.count == 1 else "tf",
            resumed_from=None if self._resumed is None else self._resumed.path,
            micro_batches=self._micro_batches,
            notes=self._notes,
            skipped_records=self._data.skipped,
            failure=None if diverged is None else {"class": "diverged", "message": str(diverged)},
        )
        if self._ranks.rank == 0:
            write_summary(summary, self._output)
        self._observer.on_end(summary)
        if diverged is not None:
            return self._leave(diverged)
        return stopping.EXIT_CODE if outcome.stopped else 0

    def _train(self, position: Position) -> Outcome:
        if not is_elastic():
            return self._run_guarded(self._make_trainer(position, lambda epoch_ended: None))
        from launcher.train import elastic

        state = elastic.KerasState(self._variables, position, self._ranks)
        return elastic.run_elastically(self._make_trainer, state, self._config.commit_steps)

    def _leave(self, diverged: DivergedError) -> int:
        """The end of training that has diverged: all ranks leave, and the first that saw it tells.

        Only that one fails for its own reason, to whoever reads the heartbeats of all.
        """
        saved = self._store.paths()
        last = f"the last checkpoint, {saved[-1]}, is sound" if saved else "no checkpoint was saved"
        message = f"diverged: {diverged}; {last}. {ADVICE}"
        _log.error("%s", message)
        rank = self._ranks.rank
        if rank == diverged.rank:
            place = "" if rank == 0 else f"rank {rank}: "
            print(f"launcher.train: {place}{message}", file=sys.stderr, flush=True)
        else:
            self._heartbeat.beat("leaving")
        self._ranks.barrier()  # A rank that leaves may take the others with it: tell first.
        return diverged.exit_code

    def _fit_memory(self) -> int:
        if is_elastic() or self._config.on_oom == "stop":
            return self._config.micro_batches
        pieces, story = memory.fit_micro_batches(
            self._config, self._data, self._ranks, self._output
        )
        if story is not None:
            self._notes.append(story)
        return pieces

    def _resume(self) -> Position:
        """The position to start from, with the values of its checkpoint on rank 0."""
        config, ranks, store, variables = self._config, self._ranks, self._store, self._variables
        found = together(ranks, lambda: find_checkpoint(config, store, variables, ranks))
        self._resumed = share(found, config, ranks.size * self._replicas.count, ranks)
        if self._resumed is None:
            return Position()
        if found is not None:
            for variable, array in zip(variables, found[0].arrays, strict=True):
                variable.assign(array)  # type: ignore[attr-defined]
        self._notes.extend(self._resumed.notes)
        return Position(**self._resumed.meta["position"])

    def _make_trainer(self, position: Position, commit: Callable[[bool], None]) -> Trainer:
        """A trainer, and observers, for the ranks of this moment. No collectives."""
        config, ranks = self._config, self._ranks
        if is_elastic():  # where the writer may be another rank by now
            self._lock.settle(ranks)
        self._observer = assemble(
            config, self._model, ranks, self._output, self._heartbeat, self._exporter
        )
        self._trainer = trainer = Trainer(
            config,
            self._data,
            self._model,
            self._optimizer,
            ranks,
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
        rank, output = self._ranks.rank, self._output
        if self._ranks.size > 1:
            memory.watch_peers(rank, output)
        try:
            return trainer.run()
        except DivergedError:
            raise  # as on all ranks
        except LauncherError as error:
            leave_alone(error, self._ranks)
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
            rank=self._ranks.rank,
            world_size=trainer.world_size,
            backend=self._ranks.name,
            norm=config.norm,
            epochs=config.epochs,
            epoch=position.epoch,
            step=position.step,
            steps_per_epoch=steps_left(
                len(self._data.train), 0, config.batch_size, trainer.world_size
            ),
            output=self._output,
            notes=tuple(self._notes),
        )


def _check_rows(data: DataSet, replicas: Replicas) -> None:
    """A rank may be without rows in a step, a replica of a process may not."""
    if len(data.train) < replicas.count:
        raise UsageError(
            f"--replicas must not be more than the {len(data.train)} samples to train on. "
            f"Received: --replicas {replicas.count}"
        )


def make_replicas(config: TrainConfig, ranks: Communicator) -> Replicas:
    """The replicas `--replicas` asks for.

    Raises:
        UsageError: Several replicas in one of several processes, or on another backend than tf.
    """
    if config.replicas == 1:
        return Replicas()
    if ranks.size > 1:
        raise UsageError(
            f"--replicas is for a single process; this job has {ranks.size} with one replica each. "
            f"Received: --replicas {config.replicas}"
        )
    if config.backend not in ("auto", "tf"):
        raise UsageError(f"--replicas needs the tf backend. Received: --backend {config.backend}")
    if config.micro_batches > 1 or config.on_oom == "shrink":
        raise UsageError("micro-batches and --on-oom shrink need one replica per process")
    return MirroredReplicas(config.replicas)


def _start_log(output: Path, ranks: Communicator) -> None:
    handler = logging.FileHandler(output / "logs" / f"rank-{ranks.rank}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    tf.get_logger().setLevel(logging.WARNING)
    _log.info("rank %d of %d over %s, process %d", ranks.rank, ranks.size, ranks.name, os.getpid())
