"""Puts the report of a run beside the run."""

from collections.abc import Sequence
from pathlib import Path

from launcher.errors import LauncherError
from launcher.files import write_whole
from launcher.report.page import render
from launcher.report.run import read_run


def write_report(directories: Sequence[Path], target: Path | None = None) -> Path:
    """Writes one page about one run or two; into the first one's directory unless told otherwise.

    Raises:
        UsageError: A directory holds no run.
        MissingToolError: matplotlib is not installed.
        LauncherError: The file cannot be written.
    """
    runs = [read_run(directory) for directory in directories]
    name = "report.html" if len(runs) == 1 else f"report-with-{runs[1].name}.html"
    path = target or directories[0] / name
    text = render(runs)
    try:
        write_whole(path, lambda file: file.write(text.encode()), durable=False)
    except OSError as error:
        raise LauncherError(
            f"the report cannot be written to {path}: {error.strerror}; name another place with "
            "--output"
        ) from error
    return path
