"""Keeps the ports of mpirun itself on loopback, for jobs on one machine.

Open MPI 4.1 opens them on all addresses, for daemons on other machines that such a job has not, and
no option of it changes that. Preloaded into mpirun, the library of kernels puts 127.0.0.1 in the
place of all addresses (syncbn/native/listening.cc).
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from launcher.placement.backends import LOOPBACK

_PRELOAD, _ADDRESS = "LD_PRELOAD", "SYNCBN_LISTEN_ON"


def mpirun_environment() -> dict[str, str]:
    """What mpirun needs to listen on loopback only; empty where there is no library of kernels."""
    library = _builder().found()
    if library is None:
        return {}
    inherited = os.environ.get(_PRELOAD)
    return {
        _PRELOAD: f"{library}:{inherited}" if inherited else str(library),
        _ADDRESS: LOOPBACK,
    }


def rank_environment() -> dict[str, str]:
    """Takes back from the ranks what mpirun has handed down to them."""
    return {_PRELOAD: os.environ.get(_PRELOAD, ""), _ADDRESS: ""}


def _builder() -> ModuleType:
    """`syncbn.native.compiler`, without the package around it, which imports TensorFlow."""
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
