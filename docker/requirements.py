"""Writes the packages of each stage of the Dockerfile to a file per stage, from pyproject.toml.

The layers of packages stay cached while these lists are the same.
"""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras: dict[str, list[str]] = project["optional-dependencies"]
shared = [*project["dependencies"], *extras["mpi"], *extras["report"]]
lists = {
    "cpu": [*shared, *extras["cpu"]],
    "gpu": [*shared, *extras["gpu"]],
    "horovod": [name for name in extras["horovod"] if not name.startswith("syncbn")],
}
for name, lines in lists.items():
    Path(f"{name}.txt").write_text("\n".join(lines) + "\n")
