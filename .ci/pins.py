"""Renews constraints.txt: the exact version of everything the extras pull in. `make pins` runs it.

uv resolves for every Python we support at once, with markers where these differ, from descriptions
only; nothing is installed.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("dev", "gpu", "wheel", "mutants")
HEADER = """\
# The exact versions that `make` installs, so that tomorrow's release breaks nothing.
# Written by `make pins` from the extras in pyproject.toml; edit those, not this.
"""


def resolve(*options: str) -> str:
    """The pins of all extras; versions that CONSTRAINTS has stay where `--upgrade` is not given."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", oldest, "--fork-strategy", "fewest"]
    command += ["--no-annotate", "--no-header", "--output-file", str(CONSTRAINTS), *options]
    for extra in EXTRAS:
        command += ["--extra", extra]
    subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True)
    return CONSTRAINTS.read_text()


if __name__ == "__main__":
    CONSTRAINTS.write_text(HEADER + resolve(*sys.argv[1:]))
