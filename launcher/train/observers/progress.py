"""Progress output of rank 0: a progress bar on a terminal, one plain line per epoch elsewhere."""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launcher.train.observers.base import EpochDone, Observer, RunStarted, StepDone


class ProgressLines(Observer):
    """Prints a line per epoch, with a progress bar if the console is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not _on_terminal(),
        )

    def on_start(self, run: RunStarted) -> None:
        self._print(
            f"{run.model} on {run.dataset}: {run.parameters:,} parameters, {run.world_size} "
            f"rank{'s' * (run.world_size > 1)} over {run.backend}, norm {run.norm}, "
            f"{run.epochs} epochs{', ' * bool(run.kernels)}{run.kernels}"
        )
        self._first_step, self._rate = run.step + 2, 0.0  # the first includes compilation
        for note in run.notes:
            self._print(note)
        self._task = self._progress.add_task(
            "train",
            total=run.epochs * run.steps_per_epoch,
            completed=run.step,
            epoch=run.epoch + 1,
            numbers="compiling the first step",
        )
        self._progress.start()

    def on_step(self, step: StepDone) -> None:
        if self._progress.disable:
            return
        rate = step.rows / step.seconds
        # A moving average over about ten steps: single steps fluctuate.
        self._rate = rate if step.step <= self._first_step else 0.9 * self._rate + 0.1 * rate
        numbers = f"loss {step.loss:.4f}  accuracy {step.accuracy:.1%}  {self._rate:,.0f} images/s"
        self._progress.update(self._task, advance=1, epoch=step.epoch + 1, numbers=numbers)

    def on_epoch(self, epoch: EpochDone) -> None:
        line = f"epoch {epoch.epoch + 1:3d}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
        if epoch.validation_accuracy is not None:
            line += (
                f"  test loss {epoch.validation_loss:.4f}"
                f"  test accuracy {epoch.validation_accuracy:.4f}"
            )
        self._print(f"{line}  {epoch.images_per_second:,.0f} images/s")

    def on_end(self, summary: dict[str, Any]) -> None:
        self._progress.stop()
        if summary["stopped"]:
            self._print(f"stopped by SIGTERM after step {summary['steps']}; the state is saved")
        if summary["accuracy"] is not None:
            self._print(f"test accuracy   {summary['accuracy']:.4f}")
        if summary["skipped_updates"]:
            self._print(f"updates skipped {summary['skipped_updates']}")
        self._print(f"images/s        {summary['images_per_second']:,.0f}")
        self._print(f"files           {summary['output']}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _on_terminal() -> bool:
    """Whether the output goes directly to a terminal.

    Open MPI gives its ranks a pseudo-terminal even when its own output goes to a file or through
    horovodrun, which prefixes each write. Under Open MPI the terminal of the parent counts.
    """
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        return sys.stdout.isatty()
    try:
        target = str(Path(f"/proc/{os.getppid()}/fd/1").readlink())
    except OSError:
        return False
    return target.startswith(("/dev/pts/", "/dev/tty"))
