"""The command line as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import REPOSITORY

JOB = ("--backend", "local")


def launcher(
    *arguments: str, where: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=where or REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
