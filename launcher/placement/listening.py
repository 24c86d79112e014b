"""Keeps the ports of mpirun and its daemons on one address: loopback, or that of a container.

Open MPI 4.1 opens them on all addresses, and it has no option to change that. Preloaded into
mpirun, the library of kernels binds them to that address instead (syncbn/native/listening.cc).
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

_PRELOAD, _ADDRESS = "LD_PRELOAD", "SYNCBN_LISTEN_ON"


def mpirun_environment(address: str) -> dict[str, str]:
    """The variables that keep mpirun on this address; empty if there is no library of kernels."""
    library = _builder().found()
    if library is None:
        return {}
    inherited = os.environ.get(_PRELOAD)
    return {
        _PRELOAD: f"{library}:{inherited}" if inherited else str(library),
        _ADDRESS: address,
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
