"""Every metric that is exported, defined once; docs/metrics.md is generated from this file.

Names follow https://prometheus.io/docs/practices/naming. Each rank exports `training_*`, which the
launcher's page aggregates over ranks; the launcher itself exports `launcher_*`.
"""

from typing import Any

from prometheus_client import Counter, Gauge

from launcher.metrics.page import Histogram, Metric

# 1 ms to 100 s, each at most 1.5 times the one before, so that quantiles are accurate to 20 %.
STEP_BUCKETS = (
    *(round(base * 10.0**power, 9) for power in range(-3, 2) for base in (1, 1.5, 2, 3, 5, 7)),
    100.0,
)
# 10 µs (MPI within a host) to 30 s (waiting for a late rank).
ALL_REDUCE_BUCKETS = tuple(
    round(base * 10.0**power, 9) for power in range(-5, 2) for base in (1, 2, 5)
)[:-1]
CHECKPOINT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

STEP_PARTS = (
    "input_wait",
    "compute",
    "gradient_all_reduce",
    "sync_batch_norm_all_reduce",
    "other_all_reduce",
)
ALL_REDUCE_KINDS = ("sync_batch_norm", "gradients", "other")
WORKER_STATES = (
    "starting",
    "running",
    "training",
    "evaluating",
    "saving",
    "done",
    "leaving",
    "stopped",
    "failed",
)
EXIT_REASONS = ("success", "stopped", "error", "signal")
RESTART_REASONS = (
    "error",
    "killed",
    "oom",
    "hang",
    "preempted",
    "lost_host",
    "bad_config",
    "disk_full",
    "diverged",
)


STEPS = Metric(
    Counter,
    "training_steps_total",
    "Optimizer steps, including those repeated after a restart.",
    over_ranks="max",
)
EXAMPLES = Metric(Counter, "training_examples_total", "Examples this rank has trained on.")
STEP_DURATION = Metric(
    Histogram,
    "training_step_duration_seconds",
    "From one optimizer step to the next, including the wait for input.",
    buckets=STEP_BUCKETS,
)
STEP_PART = Metric(
    Counter,
    "training_step_part_seconds_total",
    "Time of the steps by part. All-reduces include the wait for slower ranks; compute is the "
    "remainder.",
    labels={"part": STEP_PARTS},
)
ALL_REDUCE_DURATION = Metric(
    Histogram,
    "training_all_reduce_duration_seconds",
    "Duration of each all-reduce, including the wait for slower ranks.",
    labels={"kind": ALL_REDUCE_KINDS},
    buckets=ALL_REDUCE_BUCKETS,
)
ALL_REDUCE_BYTES = Metric(
    Counter,
    "training_all_reduce_bytes_total",
    "Bytes this rank has contributed to all-reduces.",
    labels={"kind": ALL_REDUCE_KINDS},
)
LOSS = Metric(
    Gauge, "training_loss", "Mean loss of the newest step over all ranks.", over_ranks="first"
)
ACCURACY = Metric(
    Gauge,
    "training_accuracy_ratio",
    "Accuracy of the newest step over all ranks, 0 to 1.",
    over_ranks="first",
)
NON_FINITE_LOSSES = Metric(
    Counter,
    "training_non_finite_losses_total",
    "Steps whose loss was NaN or infinite.",
    over_ranks="max",
)
VALIDATION_LOSS = Metric(
    Gauge, "training_validation_loss", "Loss of the newest evaluation.", over_ranks="first"
)
VALIDATION_ACCURACY = Metric(
    Gauge,
    "training_validation_accuracy_ratio",
    "Accuracy of the newest evaluation, 0 to 1.",
    over_ranks="first",
)
LEARNING_RATE = Metric(
    Gauge, "training_learning_rate", "Learning rate of the newest step.", over_ranks="first"
)
GRADIENT_NORM = Metric(
    Gauge,
    "training_gradient_norm",
    "Euclidean norm of the averaged gradients of the newest step; with over a million elements, of "
    "a step within the last second.",
    over_ranks="first",
)
EPOCH = Metric(Gauge, "training_epoch", "The epoch in progress, from 0.", over_ranks="first")
LAST_STEP = Metric(
    Gauge,
    "training_last_step_timestamp_seconds",
    "When the newest step ended; 0 before the first.",
    over_ranks="max",
)
START = Metric(
    Gauge,
    "training_start_timestamp_seconds",
    "When training began in the newest attempt; 0 before.",
    over_ranks="max",
)
WORLD_SIZE = Metric(Gauge, "training_world_size", "Ranks in the job.", over_ranks="first")
SLOWEST_RANK_RATIO = Metric(
    Gauge,
    "training_slowest_rank_ratio",
    "Compute and input time of the slowest rank over the median of the others; 1 when all are "
    "equal, 0 before it is known.",
    over_ranks="first",
)
SLOWEST_RANK = Metric(
    Gauge, "training_slowest_rank", "Which rank is the slowest.", over_ranks="first"
)
DIVERGED_RANKS = Metric(
    Gauge,
    "training_diverged_ranks",
    "Ranks whose weights differ from rank 0's in any bit, checked after each epoch.",
    over_ranks="max",
)
CHECKPOINT_DURATION = Metric(
    Histogram,
    "training_checkpoint_duration_seconds",
    "Time to write a checkpoint, on the rank that writes it.",
    buckets=CHECKPOINT_BUCKETS,
)
CHECKPOINT_SIZE = Metric(
    Gauge, "training_checkpoint_size_bytes", "Size of the newest checkpoint.", over_ranks="max"
)
CHECKPOINT_SUCCESS = Metric(
    Gauge,
    "training_checkpoint_last_success_timestamp_seconds",
    "When the newest checkpoint was complete; 0 before the first and on ranks that write none.",
    over_ranks="max",
)
RENDEZVOUS_DURATION = Metric(
    Gauge,
    "training_rendezvous_duration_seconds",
    "Time until the rank had joined its peers.",
    over_ranks="max",
)
RESIDENT_MEMORY = Metric(Gauge, "training_resident_memory_bytes", "Resident memory of the ranks.")
GPU_MEMORY = Metric(
    Gauge, "training_gpu_memory_used_bytes", "GPU memory in use on the rank's device; 0 without."
)
GPU_UTILIZATION = Metric(
    Gauge,
    "training_gpu_utilization_ratio",
    "Fraction of time the rank's GPU was busy, 0 to 1; 0 without one.",
    over_ranks="max",
)
TRAINING_INFO = Metric(
    Gauge,
    "training_info",
    "Always 1; its labels identify the run, and tell a rank's page from the job's.",
    labels=dict.fromkeys(
        ("run", "page", "rank", "host", "model", "dataset", "norm", "backend"), ()
    ),
    over_ranks="first",
)
BUILD_INFO = Metric(
    Gauge,
    "launcher_build_info",
    "Always 1; its labels are the installed versions.",
    labels=dict.fromkeys(("version", "python", "tensorflow", "keras"), ()),
    over_ranks="first",
)

WORKERS = Metric(Gauge, "launcher_workers", "Ranks in each state.", labels={"state": WORKER_STATES})
WORKER_EXITS = Metric(
    Counter,
    "launcher_worker_exits_total",
    "Exits of ranks: successful, stopped by the launcher, with an error code, or by a signal.",
    labels={"reason": EXIT_REASONS},
)
RESTARTS = Metric(
    Counter,
    "launcher_restarts_total",
    "Restarts of the job by the cause of the failure.",
    labels={"reason": RESTART_REASONS},
)
ATTEMPT = Metric(Gauge, "launcher_attempt", "The attempt in progress, from 0.")
RANKS = Metric(Gauge, "launcher_ranks", "Requested number of ranks.")
JOB_START = Metric(Gauge, "launcher_start_timestamp_seconds", "When the job was started.")
JOB_RENDEZVOUS = Metric(
    Gauge,
    "launcher_rendezvous_duration_seconds",
    "From the start of the newest attempt until all its ranks train.",
)

_ALL: list[Metric[Any]] = [value for value in globals().values() if isinstance(value, Metric)]
_JOB: list[Metric[Any]] = [
    WORKERS,
    WORKER_EXITS,
    RESTARTS,
    ATTEMPT,
    RANKS,
    JOB_START,
    JOB_RENDEZVOUS,
]

# The metrics of a rank's page, and those that the launcher adds on the job's page.
RANK_METRICS = tuple(metric for metric in _ALL if metric not in _JOB)
JOB_METRICS = tuple(_JOB)
