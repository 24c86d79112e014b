"""The training program that every rank runs, from top to bottom:

init, data, model, optimizer, resume; then for each epoch train, evaluate, save; then report.

Only this file knows all options: each helper receives the values that it needs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import keras
import tensorflow as tf

import syncbn
from launcher.atomic import WriteError
from launcher.errors import LauncherError, UsageError
from launcher.heartbeat import Heartbeat
from launcher.train import memory
from launcher.train.checkpoint import CheckpointStore
from launcher.train.config import TrainConfig
from launcher.train.coordination import PeerError, join, make_output_directory, together
from launcher.train.data import Sharding, load_dataset
from launcher.train.divergence import DivergedError, NonFiniteCheck
from launcher.train.environment import is_elastic
from launcher.train.failure import report_failure, train_guarded
from launcher.train.loop import TrainingLoop
from launcher.train.models import build_model
from launcher.train.observers.assemble import assemble
from launcher.train.observers.base import Observers, RunStarted
from launcher.train.observers.exporter import Exporter
from launcher.train.observers.startup import StartupTimes
from launcher.train.optimizer import learning_rate, make_optimizer
from launcher.train.output_lock import OutputLock
from launcher.train.rank_log import implementation, log_fingerprint, start_rank_log
from launcher.train.replicas import make_replicas
from launcher.train.report import summarize, write_summary
from launcher.train.resume import restore, save_state
from launcher.train.steps import Steps
from launcher.train.stopping import EXIT_CODE, StopRequest
from launcher.train.train_state import Outcome, StepTimes, TrainState
from syncbn import native


def run(config: TrainConfig) -> int:
    """Trains with these options and returns the exit code of this rank."""
    startup = StartupTimes()
    startup.done("imports")
    heartbeat = Heartbeat.from_environment()
    try:
        return _run(config, heartbeat, startup)
    except PeerError:
        heartbeat.beat("leaving")
        raise


def _run(config: TrainConfig, heartbeat: Heartbeat, startup: StartupTimes) -> int:
    # Init. Signals, heartbeat and metrics come first, because joining the job may take long.
    options = config.model_dump(mode="json")
    names = {"model": config.model, "dataset": config.dataset, "norm": config.norm}
    notes: list[str] = []
    stop = StopRequest()
    heartbeat.beat("starting")
    exporter = Exporter(config.metrics_port, config.metrics_host, config.metrics_push)
    started = time.perf_counter()
    communicator = join(config.backend)
    waited = time.perf_counter() - started
    startup.done("rendezvous")
    stop.listen()
    replicas = make_replicas(config.replicas, communicator.size)
    sharding = Sharding(config.batch_size, communicator, replicas.count)
    output = make_output_directory(config.output, communicator)
    lock = OutputLock(output)
    lock.settle(communicator)  # before anything is written
    start_rank_log(output, communicator)
    exporter.joined(communicator, output, waited, names)
    keras.config.set_dtype_policy(config.precision)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # A different seed on each rank: the broadcast makes the ranks equal, not the seed.
    keras.utils.set_random_seed(config.seed + communicator.rank)

    # Data.
    data = together(
        communicator,
        lambda: load_dataset(
            config.dataset,
            config.data,
            image_size=config.image_size,
            validation_part=config.validation_part,
            skip_bad_records=config.skip_bad_records,
            augment=config.augment,
            seed=config.seed,
        ),
    )
    if len(data.train) < replicas.count:
        raise UsageError(
            f"--replicas must not exceed the {len(data.train)} training samples. "
            f"Received: --replicas {replicas.count}"
        )

    # Model.
    new_model = partial(
        build_model, config.model, data.shape, data.classes, bn_momentum=config.bn_momentum
    )
    with replicas.scope():
        model = together(communicator, lambda: new_model(norm=config.norm))

    # Optimizer, and the steps that it takes.
    new_optimizer = partial(
        make_optimizer,
        config.optimizer,
        config.learning_rate,
        weight_decay=config.weight_decay,
        loss_scaling=config.precision == "mixed_float16",
        compression=config.compression,
    )
    with replicas.scope():
        optimizer = new_optimizer()
        optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    rate = partial(
        learning_rate,
        base=config.learning_rate,
        schedule=config.schedule,
        warmup=config.warmup_epochs,
        epochs=config.epochs,
    )
    new_steps = partial(
        Steps,
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        on_nan=config.on_nan,
    )
    micro_batches = config.micro_batches
    if config.on_oom == "shrink" and not is_elastic():
        trial = memory.StepTrial(
            partial(new_model, norm="none" if config.norm == "none" else "local"),
            new_optimizer,
            new_steps,
            data.shape,
        )
        micro_batches, note = memory.fit_micro_batches(
            trial, config.batch_size, micro_batches, communicator, output
        )
        notes += [] if note is None else [note]

    # Resume: rank 0 restores the variables; the broadcast before the loop sends them to all.
    store = CheckpointStore(output / "checkpoints", config.keep_checkpoints)
    resumed = restore(store, variables, communicator, config.resume, options, sharding.world_size)
    state = TrainState() if resumed is None else resumed.state
    notes += [] if resumed is None else resumed.notes
    startup.done("data_and_model")

    # Train. An elastic job calls `train` again whenever the set of ranks changes.
    observers, times = Observers([]), StepTimes()

    def train(start: TrainState, commit: Callable[[bool], None]) -> Outcome:
        nonlocal state, observers, times
        state, times = start, StepTimes()
        if is_elastic():  # rank 0, the writer, may be another process now
            lock.settle(communicator)
        run_started = RunStarted(
            **names,
            parameters=int(model.count_params()),
            rank=communicator.rank,
            world_size=sharding.world_size,
            backend=communicator.name,
            epochs=config.epochs,
            epoch=state.epoch,
            step=state.step,
            steps_per_epoch=sharding.steps(len(data.train)),
            output=output,
            notes=tuple(notes),
            kernels=implementation(communicator),
        )
        observers = assemble(
            model,
            communicator,
            output,
            heartbeat,
            exporter,
            startup,
            options=options,
            norm=config.norm,
            tensorboard=config.tensorboard,
            mlflow=config.mlflow,
            profile_steps=config.profile_steps,
        )
        steps = new_steps(model, optimizer, communicator, replicas, micro_batches=micro_batches)
        observers.on_start(run_started)
        syncbn.broadcast_variables(variables)
        if not startup.complete:
            startup.done("broadcast")
        loop = TrainingLoop(
            data,
            model,
            steps,
            state,
            sharding,
            communicator,
            NonFiniteCheck(config.on_nan, model, variables, steps, communicator),
            observers,
            times,
            seed=config.seed,
            learning_rate=rate,
            stop_requested=lambda: stop.requested,
            commit=commit,
            write_checkpoint=lambda: save_state(
                store, state, variables, options, sharding.world_size, micro_batches
            ),
            checkpoint_steps=config.checkpoint_steps,
            local_statistics=config.norm == "local",
        )
        patience = config.early_stopping or math.inf
        evaluation, train_loss, stopped = None, None, False
        while state.epoch < config.epochs and state.evaluations_since_best < patience:
            if stopped := loop.train_epoch():
                break
            evaluation = None
            if state.epoch == config.epochs or state.epoch % config.evaluate_every == 0:
                evaluation = loop.evaluate()
            train_loss = loop.finish_epoch(evaluation)
            loop.save()
            loop.check_evaluation(evaluation)
            commit(True)
        if stopped:
            loop.save()
            communicator.barrier()  # a rank that exits may end the others: save first
        elif evaluation is None:  # a complete run was resumed
            evaluation = loop.evaluate()
            loop.check_evaluation(evaluation)
        stopped_early = state.evaluations_since_best >= patience
        return Outcome(stopped, stopped_early, evaluation, train_loss)

    failure: LauncherError | None = None
    try:
        if is_elastic():
            from launcher.train import elastic

            kept = elastic.KerasState(variables, state, communicator)
            outcome = elastic.run_elastically(train, kept, config.commit_steps)
        else:
            outcome = train_guarded(
                partial(train, state, lambda epoch_ended: None),
                communicator,
                batch_size=config.batch_size,
                micro_batches=micro_batches,
                shrink=config.on_oom == "shrink",
                output=output,
            )
    except (DivergedError, WriteError, PeerError) as error:
        if is_elastic() and not isinstance(error, DivergedError):
            raise  # the other ranks do not know of it
        failure, outcome = error, Outcome()

    # Report.
    log_fingerprint(variables)
    summary = partial(
        summarize,
        options,
        world_size=sharding.world_size,
        output=str(output),
        backend=communicator.name if replicas.count == 1 else "tf",
        resumed_from=None if resumed is None else resumed.path,
        micro_batches=micro_batches,
        notes=notes,
        skipped_records=data.skipped,
        kernels=asdict(native.status()),
        startup=startup.summary(),
    )
    report = summary(state, times, outcome, failure)
    try:
        together(communicator, lambda: write_summary(report, output, communicator.rank))
    except (WriteError, PeerError) as error:
        if is_elastic():
            raise
        failure = failure or error
        report = summary(state, times, outcome, failure)
    observers.on_end(report)
    if failure is not None:
        return report_failure(failure, communicator, store.paths(), heartbeat)
    if outcome.stopped and not stop.requested:
        heartbeat.beat("leaving")
    return EXIT_CODE if outcome.stopped else 0
