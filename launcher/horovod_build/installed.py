"""Tells whether the installed Horovod works and is the one a recipe asks for."""

import importlib.metadata
import json
import os
import subprocess
import sys

from launcher.horovod_build.machine import SCRIPTS
from launcher.horovod_build.recipe import VERSION, Recipe

# One rank over Gloo: no launcher and no MPI start-up are needed to try the library.
_ONE_RANK = {
    "HOROVOD_RANK": "0",
    "HOROVOD_SIZE": "1",
    "HOROVOD_LOCAL_RANK": "0",
    "HOROVOD_LOCAL_SIZE": "1",
    "HOROVOD_CROSS_RANK": "0",
    "HOROVOD_CROSS_SIZE": "1",
    "HOROVOD_CONTROLLER": "gloo",
    "HOROVOD_CPU_OPERATIONS": "gloo",
    # By default Gloo looks the host's name up, and not every machine can resolve its own.
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
    """Why the installed Horovod does not serve this recipe, in one line; None if it does.

    A Horovod built by somebody else serves too if it passes the same trial; one of ours serves only
    if it was made by an equal recipe. Takes the time of importing TensorFlow.
    """
    version = installed_version()
    if version is None:
        return "Horovod is not installed"
    base, _, label = version.partition("+")
    if base != VERSION:
        return f"Horovod {version} is installed, and {VERSION} is wanted"
    if label.startswith("syncbn.") and label != recipe.label:
        return f"Horovod {version} was built another way; now it is {recipe.version}"
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
    missing = [engine for engine in ("mpi", "gloo") if not found[engine]]
    if recipe.gpu and not found["nccl"]:
        missing.append("nccl")
    return f"it was built without {' and '.join(missing)}" if missing else None
