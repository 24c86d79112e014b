"""The results of a run: summary.json and report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.atomic import WriteError, replace_json
from launcher.errors import LauncherError
from launcher.runs.layout import SUMMARY
from launcher.train.environment import launcher_run
from launcher.train.failure import describe_failure
from launcher.train.observers.base import Observer
from launcher.train.train_state import Outcome, StepTimes, TrainState

_OPTIONS = ("norm", "model", "dataset", "batch_size", "seed")


def summarize(
    options: Mapping[str, Any],
    state: TrainState,
    times: StepTimes,
    outcome: Outcome,
    failure: LauncherError | None,
    **facts: Any,
) -> dict[str, Any]:
    """The contents of summary.json; loss and accuracy are those of the held-out part."""
    evaluation = outcome.evaluation
    return {
        "accuracy": None if evaluation is None else evaluation.accuracy,
        "loss": None if evaluation is None else evaluation.loss,
        "train_loss": outcome.train_loss,
        "images_per_second": times.images_per_second,
        "step_seconds_p50": times.median_seconds,
        **{name: options[name] for name in _OPTIONS},
        "epochs": state.epoch,
        "steps": state.step,
        "stopped": outcome.stopped,
        "stopped_early": outcome.stopped_early,
        "skipped_updates": state.skipped,
        "failure": describe_failure(failure),
        **facts,
    }


def write_summary(summary: dict[str, Any], output: Path, rank: int) -> None:
    """Writes summary.json on rank 0.

    Raises:
        WriteError: It cannot be written.
    """
    if rank != 0:
        return
    path = output / SUMMARY
    try:
        replace_json(path, summary)
    except OSError as error:
        raise WriteError(path, error) from error


class Report(Observer):
    """Writes OUTPUT/report.html, unless the run was stopped and must exit quickly.

    In a run of the launcher, the launcher writes the report, which includes restarts.
    """

    what = "report.html"

    def __init__(self, output: Path) -> None:
        self._output = output

    def on_end(self, summary: dict[str, Any]) -> None:
        run = launcher_run()
        of_launcher = run is not None and run.resolve() == self._output.resolve()
        if not (summary["stopped"] or of_launcher):
            from launcher.report.write import write_report

            write_report([self._output])
