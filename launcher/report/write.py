"""Writes the report of a run into its directory."""

from collections.abc import Sequence
from pathlib import Path

from launcher.atomic import replace_text
from launcher.errors import LauncherError
from launcher.report.page import render
from launcher.report.run import read_run
from launcher.runs.layout import report_path


def write_report(directories: Sequence[Path], target: Path | None = None) -> Path:
    """Writes a page about one run or two, to `target` or into the first run's directory.

    Raises:
        UsageError: A directory is not a run.
        MissingToolError: matplotlib is not installed.
        LauncherError: The file cannot be written.
    """
    runs = [read_run(directory) for directory in directories]
    path = target or report_path(directories[0], *directories[1:])
    text = render(runs)
    try:
        replace_text(path, text, durable=False)
    except OSError as error:
        raise LauncherError(
            f"the report cannot be written to {path}: {error.strerror}; choose another path with "
            "--file"
        ) from error
    return path
