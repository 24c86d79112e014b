"""Where the library of kernels is; builds it with the C++ compiler at hand, into a cache.

`python -m syncbn.native.build` does that ahead of time and says what went wrong. For an image that
other machines will run, name the least processor they have, when building and in the image's
environment: `SYNCBN_MARCH=x86-64-v3`. A lesser one then goes without.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf

from syncbn.native import processor

_DIRECTORY = Path(__file__).parent
_SOURCES = ("ops.cc", "mpi.cc", "telemetry.cc")
_HEADERS = ("kernels.h", "moments.h")
_TIMEOUT_SECONDS = 600

# Contraction to fused multiply-adds is off so that every processor rounds alike: ranks may run on
# different ones.
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC"]


class BuildError(Exception):
    """The library cannot be built or run here; the text says what is missing."""


def library() -> Path:
    """The built library; builds it first if there is none for these sources and this machine.

    Of several processes that come at once one builds and the others wait.

    Raises:
        BuildError: No compiler, no place to write, the compiler failed, or this processor lacks
            instructions of the one that `SYNCBN_MARCH` names.
    """
    if missing := processor.lacking(_march(), processor.instructions()):
        raise BuildError(
            f"the kernels are made for {_march()}, and this processor has no {', '.join(missing)}"
        )
    name = f"syncbn-{_fingerprint()}.so"
    for place in (_beside_packages(), _of_user()):
        if (place / name).exists():
            return place / name
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError(
            "no C++ compiler to build the kernels with. Install g++, then run: "
            "python -m syncbn.native.build"
        )
    private = sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)
    target = (_beside_packages() if private else _of_user()) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, target)
    except OSError as error:
        raise BuildError(f"no place to build the kernels in: {error}") from error
    return target


def _beside_packages() -> Path:
    """In a virtual environment of one's own as private as the packages; images have it here too."""
    return Path(sys.prefix) / "lib" / "syncbn"


def _of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "syncbn"


def _march() -> str:
    return os.environ.get("SYNCBN_MARCH", "native")


def _fingerprint() -> str:
    """Names everything the library depends on."""
    made_for = processor.instructions() if _march() == "native" else _march()
    parts = [tf.__version__, platform.machine(), made_for, " ".join(_FLAGS)]
    parts += [(_DIRECTORY / name).read_text() for name in (*_HEADERS, *_SOURCES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / "library.so"
        command = [
            compiler,
            *_FLAGS,
            f"-march={_march()}",
            "-shared",
            *tf.sysconfig.get_compile_flags(),
        ]
        command += [str(_DIRECTORY / name) for name in _SOURCES]
        command += ["-o", str(built), *tf.sysconfig.get_link_flags()]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took more than {_TIMEOUT_SECONDS} s") from error
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            raise BuildError(f"{compiler} failed: {' '.join(errors[:3]) or done.stderr[-300:]}")
        built.replace(target)
