"""Keeps the ports of mpirun itself on loopback, for jobs on one machine.

Open MPI 4.1 opens them on all addresses, for daemons on other machines that such a job does not
have, and it has no option to change that. Preloaded into mpirun, the library of kernels binds them
to 127.0.0.1 instead (syncbn/native/listening.cc).
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from launcher.placement.backends import LOOPBACK

_PRELOAD, _ADDRESS = "LD_PRELOAD", "SYNCBN_LISTEN_ON"


def mpirun_environment() -> dict[str, str]:
    """The variables that keep mpirun on loopback; empty if there is no library of kernels."""
    library = _builder().found()
    if library is None:
        return {}
    inherited = os.environ.get(_PRELOAD)
    return {
        _PRELOAD: f"{library}:{inherited}" if inherited else str(library),
        _ADDRESS: LOOPBACK,
    }


def rank_environment() -> dict[str, str]:
    """Resets in the ranks what they inherit from mpirun."""
    return {_PRELOAD: os.environ.get(_PRELOAD, ""), _ADDRESS: ""}


def _builder() -> ModuleType:
    """`syncbn.native.compiler`, loaded without its package, which imports TensorFlow."""
    package = importlib.util.find_spec("syncbn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "native" / "compiler.py"
    spec = importlib.util.spec_from_file_location("syncbn_kernels", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
