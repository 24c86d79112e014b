"""Commands on a small file system in a mount namespace, which disappears with it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import REPOSITORY, SCRIPTS

PROGRAM = "tests.launcher.small_disk_program"


def run_on_small_disk(place: Path, size: str, command: Sequence[str]) -> dict[str, Any]:
    """What `small_disk_program` reports of the command; skips without the right to mount."""
    unshare = ["unshare", "--mount"]
    if os.geteuid() != 0 or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("cannot make a mount namespace: needs root and CAP_SYS_ADMIN")
    place.mkdir()
    done = subprocess.run(
        [*unshare, sys.executable, "-m", PROGRAM, str(place), size, *command],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
