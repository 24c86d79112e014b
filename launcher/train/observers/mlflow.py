"""`--mlflow`: logs the run to the MLflow server named by MLFLOW_TRACKING_URI.

For a remote server mlflow-skinny suffices. Without the variable the run is logged to a database
file in the output directory, which needs the full mlflow package.
"""

import os
from pathlib import Path
from typing import Any

from launcher.errors import MissingToolError
from launcher.train.observers.base import EpochDone, Observer, RunStarted


class MLflow(Observer):
    """Logs options as parameters and epochs as metrics; by default to `output`/mlflow.db."""

    what = "--mlflow"

    def __init__(self, output: Path, options: dict[str, Any]) -> None:
        self._output, self._options = output, options

    def on_start(self, run: RunStarted) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingToolError("MLflow is missing: pip install mlflow") from error
        self._mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{self._output.absolute()}/mlflow.db")
        mlflow.set_experiment(f"{run.model} on {run.dataset}")
        mlflow.start_run(run_name=self._output.name)
        mlflow.log_params(self._options | {"world_size": run.world_size, "backend": run.backend})

    def on_epoch(self, epoch: EpochDone) -> None:
        numbers = {
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
            "validation_loss": epoch.validation_loss,
            "validation_accuracy": epoch.validation_accuracy,
            "learning_rate": epoch.learning_rate,
            "images_per_second": epoch.images_per_second,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        self._mlflow.log_metrics(known, step=epoch.step)

    def on_end(self, summary: dict[str, Any]) -> None:
        failed = "FAILED" if summary["failure"] is not None else "FINISHED"
        self._mlflow.end_run("KILLED" if summary["stopped"] else failed)
