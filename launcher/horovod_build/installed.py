"""Checks whether the installed Horovod works and matches a recipe."""

import importlib.metadata
import json
import os
import subprocess
import sys

from launcher.horovod_build.machine import SCRIPTS
from launcher.horovod_build.recipe import VERSION, Recipe

# One rank over Gloo, which needs neither a launcher nor MPI.
_ONE_RANK = {
    "HOROVOD_RANK": "0",
    "HOROVOD_SIZE": "1",
    "HOROVOD_LOCAL_RANK": "0",
    "HOROVOD_LOCAL_SIZE": "1",
    "HOROVOD_CROSS_RANK": "0",
    "HOROVOD_CROSS_SIZE": "1",
    "HOROVOD_CONTROLLER": "gloo",
    "HOROVOD_CPU_OPERATIONS": "gloo",
    # By default Gloo resolves the host name, and not every machine can resolve its own.
    "HOROVOD_GLOO_IFACE": "lo",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_SURROUNDING_JOB = ("HOROVOD_", "OMPI_", "PMI_", "PMIX_", "TF_CONFIG")


def installed_version() -> str | None:
    """The version of the installed Horovod, or None."""
    try:
        return importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return None


def fault_of_installed(recipe: Recipe) -> str | None:
    """Why the installed Horovod does not satisfy this recipe, in one line; None if it does.

    A Horovod that was built otherwise is accepted if it passes the same check; one that we built
    only if its recipe is equal. Takes as long as importing TensorFlow.
    """
    version = installed_version()
    if version is None:
        return "Horovod is not installed"
    base, _, label = version.partition("+")
    if base != VERSION:
        return f"Horovod {version} is installed, and {VERSION} is required"
    if label.startswith("syncbn.") and label != recipe.label:
        return (
            f"Horovod {version} was built by an older recipe; the current one is {recipe.version}"
        )
    outside = {k: text for k, text in os.environ.items() if not k.startswith(_SURROUNDING_JOB)}
    path = os.pathsep.join([str(SCRIPTS), outside.get("PATH", os.defpath)])
    trial = subprocess.run(
        [sys.executable, "-m", "launcher.horovod_build.probe"],
        env=outside | _ONE_RANK | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if trial.returncode != 0:
        last = trial.stderr.strip().splitlines() or [f"it ended with {trial.returncode}"]
        return f"Horovod {version} does not work: {last[-1]}"
    found = json.loads(trial.stdout.strip().splitlines()[-1])
    if found["tensorflow"] != recipe.tensorflow:
        return f"it was built for TensorFlow {found['tensorflow']}, not {recipe.tensorflow}"
    missing = [library for library in ("mpi", "gloo") if not found[library]]
    if recipe.gpu and not found["nccl"]:
        missing.append("nccl")
    return f"it was built without {' and '.join(missing)}" if missing else None
