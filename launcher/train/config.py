"""The options of a training run, each defined once for the command line and `--config FILE`."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from launcher.errors import UsageError

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "folder", "tfrecord")
MODELS = ("dnn", "cnn", "resnet18", "resnet34", "resnet50")


class TrainConfig(BaseModel):
    """The options of one run, equal on every rank."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(
        "digits",
        description=f"{', '.join(DATASETS)}, or package.module:function (a tf.data.Dataset).",
    )
    data: Path | None = Field(
        None, description="File or directory of the data set; all but digits need one."
    )
    image_size: int | None = Field(
        None, ge=1, description="Side in pixels to resize folder and tfrecord images to."
    )
    augment: Literal["none", "shift", "flip"] = Field(
        "none",
        description="Random augmentation: shift (by up to an eighth), or flip (shift and mirror).",
    )
    skip_bad_records: bool = Field(
        False, description="Skip and count unreadable images and records instead of failing."
    )
    model: str = Field(
        "cnn",
        description=f"{', '.join(MODELS)}, a keras.applications name, or package.module:function.",
    )
    norm: Literal["sync", "local", "none"] = Field(
        "sync",
        description="Batch normalization: synchronized over all ranks, local to each, or none.",
    )
    backend: Literal["auto", "horovod", "mpi", "tf", "local"] = Field(
        "auto", description="Communication backend; auto follows how the ranks were started."
    )
    output: Path | None = Field(
        None, description="Output directory; by default a new one under runs/."
    )
    epochs: int = Field(8, ge=1, description="Number of epochs.")
    batch_size: int = Field(32, ge=1, description="Samples per rank and step.")
    learning_rate: float = Field(
        0.002, gt=0, description="Base learning rate; multiplied by the world size after warm-up."
    )
    warmup_epochs: float = Field(
        1.0, ge=0, description="Epochs of linear warm-up to the scaled learning rate."
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        "cosine",
        description="Learning rate after warm-up: constant, cosine, or step (tenfold, twice).",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        "adam", description="adam, or sgd with Nesterov momentum 0.9."
    )
    bn_momentum: float = Field(
        0.9, ge=0, lt=1, description="Momentum of the moving mean and variance."
    )
    replicas: int = Field(
        1,
        ge=1,
        description="Replicas in a single process (MirroredStrategy): GPUs, or logical CPUs.",
    )
    micro_batches: int = Field(
        1, ge=1, description="Gradient accumulation: split each batch to save memory."
    )
    on_oom: Literal["stop", "shrink"] = Field(
        "stop",
        description="Out of memory: stop, or shrink (find a number of micro-batches that fits).",
    )
    on_nan: Literal["stop", "skip", "ignore"] = Field(
        "stop",
        description="NaN or infinite loss or gradient: stop, skip the update, or ignore.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of kernels, times the learning rate."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing factor of the cross-entropy."
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="Keras dtype policy; mixed_float16 adds loss scaling."
    )
    compression: Literal["none", "float16", "bfloat16"] = Field(
        "none", description="Gradient compression during all-reduce."
    )
    evaluate_every: int = Field(1, ge=1, description="Epochs between evaluations.")
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without a lower test loss."
    )
    validation_part: float = Field(
        0.2, gt=0, lt=1, description="Fraction held out if the data set has no test part."
    )
    resume: bool = Field(
        False, description="Resume from the latest checkpoint in --output, if there is one."
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Steps between checkpoints, in addition to one per epoch."
    )
    commit_steps: int = Field(
        10, ge=1, description="Elastic jobs: steps between commits; a failure loses no more."
    )
    keep_checkpoints: int = Field(3, ge=1, description="Number of latest checkpoints to keep.")
    deterministic: bool = Field(
        False, description="Use deterministic operations: equal runs give equal bits."
    )
    seed: int = Field(0, ge=0, description="Seed of initial weights and sample order.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Serve metrics on this port + local rank; 0: any free one.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address to serve metrics on.")
    metrics_push: str | None = Field(
        None, description="Pushgateway (HOST:PORT) to push the metrics to at the end."
    )
    tensorboard: bool = Field(False, description="Write scalars for TensorBoard.")
    mlflow: bool = Field(False, description="Log the run to MLflow, if installed.")
    profile_steps: str | None = Field(
        None, description="Range of steps to profile, such as 10:20, on all ranks."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        # An empty path means the working directory, an empty host every address.
        if isinstance(value, str) and not value.strip():
            raise ValueError("expected a value, not an empty string (omit the option instead)")
        return value

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        if value not in DATASETS and ":" not in value:
            raise ValueError(f"expected one of {', '.join(DATASETS)} or package.module:function")
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        # Names of keras.applications begin with a capital; the list is not known without Keras.
        if value not in MODELS and ":" not in value and not value[:1].isupper():
            raise ValueError(
                f"expected one of {', '.join(MODELS)}, a name of keras.applications "
                "or package.module:function"
            )
        return value

    @field_validator("profile_steps")
    @classmethod
    def _range(cls, value: str | None) -> str | None:
        if value is not None:
            first, _, last = value.partition(":")
            if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
                raise ValueError("expected the first and the last step, such as 10:20")
        return value


def load_config(flags: dict[str, Any], file: Path | None = None) -> TrainConfig:
    """The options of a TOML file, overridden by flags.

    Args:
        flags: Option name (with underscores) to value; None for a flag that was not given.
        file: TOML file with the same names at its top level.

    Raises:
        UsageError: The file cannot be read, a key is unknown, a value is out of range, or two
            options exclude each other.
    """
    options = {} if file is None else _read_toml(file)
    for key in options:
        if key not in TrainConfig.model_fields:
            near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown key {key!r} in {file}{hint}")
    options |= {name: value for name, value in flags.items() if value is not None}
    try:
        config = TrainConfig.model_validate(options)
    except ValidationError as error:
        raise UsageError("; ".join(_describe(dict(e)) for e in error.errors())) from error
    _check_replicas(config)
    return config


def _check_replicas(config: TrainConfig) -> None:
    """Refuses options that MirroredStrategy rules out."""
    if config.replicas == 1:
        return
    if config.backend not in ("auto", "tf"):
        raise UsageError(f"--replicas needs the tf backend. Received: --backend {config.backend}")
    if config.micro_batches > 1 or config.on_oom == "shrink":
        raise UsageError("micro-batches and --on-oom shrink need one replica per process")
    if config.on_nan == "skip":
        # The strategy sums the gradients inside the optimizer, after the check of each update.
        raise UsageError("--on-nan skip needs one replica per process: start ranks with mpirun")


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in content.items()}


def _describe(error: dict[str, Any]) -> str:
    """One pydantic error in terms of the command line."""
    option = "--" + str(error["loc"][0]).replace("_", "-") if error["loc"] else "the options"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{option}: {message}. Received: {error['input']!r}"
