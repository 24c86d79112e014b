"""What a training run is: every option once, for the command line and for `--config FILE`."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from launcher.errors import UsageError

DATASETS = ("digits", "mnist", "cifar10", "folder", "tfrecord")
MODELS = ("dnn", "cnn", "resnet18", "resnet34", "resnet50")


class TrainConfig(BaseModel):
    """The options of one run, the same on every rank."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(
        "digits", description=f"{', '.join(DATASETS)}, or package.module:function (a tf.data)."
    )
    data: Path | None = Field(
        None, description="The file or directory of the data set (all but digits need one)."
    )
    image_size: int | None = Field(
        None, ge=1, description="Side in pixels that images of folder and tfrecord are resized to."
    )
    augment: Literal["none", "shift", "flip"] = Field(
        "none", description="shift images by up to an eighth, or shift and mirror them (flip)."
    )
    skip_bad_records: bool = Field(
        False, description="Leave out and count unreadable images and records, instead of ending."
    )
    model: str = Field(
        "cnn",
        description=f"{', '.join(MODELS)}, a keras.applications name, or package.module:function.",
    )
    norm: Literal["sync", "local", "none"] = Field(
        "sync",
        description="Batch normalization over all ranks (sync), each rank's own (local), or none.",
    )
    backend: Literal["auto", "horovod", "mpi", "tf", "local"] = Field(
        "auto", description="auto (as the ranks were started), horovod, mpi, tf or local."
    )
    output: Path | None = Field(
        None, description="Where results go; by default a new directory under runs/."
    )
    epochs: int = Field(8, ge=1, description="Passes over the training part.")
    batch_size: int = Field(32, ge=1, description="Samples per rank and step.")
    learning_rate: float = Field(
        0.002, gt=0, description="For one rank; scaled by the number of ranks after warm-up."
    )
    warmup_epochs: float = Field(
        1.0, ge=0, description="Epochs in which the learning rate rises to its scaled value."
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        "cosine", description="How the learning rate falls: constant, cosine, or step (tenfold)."
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd with momentum 0.9.")
    bn_momentum: float = Field(
        0.9, ge=0, lt=1, description="Momentum of the moving mean and variance."
    )
    replicas: int = Field(
        1,
        ge=1,
        description="Replicas in this one process (MirroredStrategy): GPUs, or parts of a CPU.",
    )
    micro_batches: int = Field(
        1, ge=1, description="Pieces a batch is computed in, one after the other, to save memory."
    )
    on_oom: Literal["stop", "shrink"] = Field(
        "stop",
        description="When memory runs out: stop, or shrink (find micro-batches that fit).",
    )
    on_nan: Literal["stop", "skip", "ignore"] = Field(
        "stop",
        description="When a loss or gradient is not finite: stop, skip that update, or ignore it.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of kernels, per rate.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Part of each target spread evenly over the classes."
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="float32, mixed_float16 (with loss scaling) or mixed_bfloat16."
    )
    compression: Literal["none", "float16", "bfloat16"] = Field(
        "none", description="What gradients travel in: none (float32), float16 or bfloat16."
    )
    evaluate_every: int = Field(1, ge=1, description="Epochs between two evaluations.")
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a lower test loss."
    )
    validation_part: float = Field(
        0.2, gt=0, lt=1, description="Part held out where the data set has no test part of its own."
    )
    resume: bool = Field(
        False,
        description="Go on from the last checkpoint in the output directory, if there is one.",
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Also save every so many steps, not only after each epoch."
    )
    commit_steps: int = Field(
        10,
        ge=1,
        description="Elastic jobs: steps between two commits, the most that a death costs.",
    )
    keep_checkpoints: int = Field(3, ge=1, description="How many of the last ones stay.")
    deterministic: bool = Field(
        False, description="Only deterministic operations: the same run twice, bit for bit."
    )
    seed: int = Field(0, ge=0, description="Of the initial weights and the order of the samples.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Serve metrics on this port + local rank; 0: a free one."
    )
    metrics_host: str = Field("127.0.0.1", description="The address metrics are served on.")
    metrics_push: str | None = Field(
        None, description="A Pushgateway (HOST:PORT) that gets the metrics at the end."
    )
    tensorboard: bool = Field(False, description="Write scalars for TensorBoard.")
    mlflow: bool = Field(False, description="Log the run to MLflow, if it is installed.")
    profile_steps: str | None = Field(
        None, description="Profile these steps, such as 10:20, with the collectives of all ranks."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        # An empty path would be the working directory, an empty host every address.
        if isinstance(value, str) and not value.strip():
            raise ValueError("expected a value, not an empty text (leave the option out instead)")
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
        # Names of keras.applications begin with a capital; which there are only Keras knows.
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
    """The configuration of a TOML file with the flags that were given on top.

    Args:
        flags: Option name (with underscores) to value; None where the flag was not given.
        file: TOML with the same names at its top level.

    Raises:
        UsageError: The file cannot be read, a key is unknown, or a value is out of range.
    """
    options = {} if file is None else _read_toml(file)
    for key in options:
        if key not in TrainConfig.model_fields:
            near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown key {key!r} in {file}{hint}")
    options |= {name: value for name, value in flags.items() if value is not None}
    try:
        return TrainConfig.model_validate(options)
    except ValidationError as error:
        raise UsageError("; ".join(_describe(dict(e)) for e in error.errors())) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in content.items()}


def _describe(error: dict[str, Any]) -> str:
    """One pydantic error in the words of the command line."""
    option = "--" + str(error["loc"][0]).replace("_", "-") if error["loc"] else "the options"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{option}: {message}. Received: {error['input']!r}"
