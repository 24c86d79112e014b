"""Renews constraints.txt: the exact version of everything the extras pull in. `make pins` runs it.

pip resolves and downloads descriptions only; nothing is installed.
"""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
HEADER = """\
# The exact versions that `make` installs, so that tomorrow's release breaks nothing.
# Written by `make pins` from the extras in pyproject.toml; edit those, not this.
"""


def resolve(extras: str, *options: str) -> dict[str, str]:
    """The versions pip would install for these extras into an empty environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    report = subprocess.run(
        [*pip, "--report", "-", *options, f".[{extras}]"],
        cwd=CONSTRAINTS.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    packages = [item["metadata"] for item in json.loads(report.stdout)["install"]]
    return {
        package["name"]: package["version"] for package in packages if package["name"] != "syncbn"
    }


def write(pins: dict[str, str]) -> None:
    """Writes the pins, sorted as pip freeze sorts them."""
    lines = [f"{name}=={pins[name]}\n" for name in sorted(pins, key=str.lower)]
    CONSTRAINTS.write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    pins = resolve("dev")
    write(pins)
    # The GPU's packages join what the CPU's settled on.
    write(resolve("gpu", "--constraint", str(CONSTRAINTS)) | pins)
