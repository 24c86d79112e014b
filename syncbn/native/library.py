"""Finds or builds the library of kernels in the package, the environment or the user's cache.

A wheel contains it in the package. Otherwise it is built once, with an installed C++ compiler;
`python -m syncbn.native.build` does so in advance and prints errors.
"""

import fcntl
import logging
import os
import platform
import sys
from pathlib import Path

from syncbn.native.compiler import (
    BuildError,
    beside_packages,
    build,
    caches_of_user,
    damage,
    file_name,
    places,
)

_log = logging.getLogger(__name__)


def library() -> Path:
    """The library of these sources for this machine; builds it if there is none.

    Of several concurrent processes one builds and the others wait. A damaged library, or one for
    another machine, is not loaded, and replaced if possible.

    Raises:
        BuildError: There is no library, and no compiler or writable directory, or the compiler
            failed.
    """
    machine = platform.machine()
    name = file_name(machine)
    problems = []
    for place in places():
        if (place / name).exists():
            found = damage(place / name, machine)
            if found is None:
                return place / name
            problems.append(found)
    for place in _places_to_build():
        try:
            built = _build_in(place, name, machine)
        except OSError as error:
            problems.append(f"the kernels cannot be built in {place}: {error.strerror or error}")
        except BuildError as error:
            raise BuildError("; ".join([*problems, str(error)])) from error
        else:
            for problem in problems:
                _log.warning("%s; using %s instead", problem, built)
            return built
    if not _places_to_build():
        problems.append("there is no directory to build the kernels in: set XDG_CACHE_HOME or HOME")
    raise BuildError("; ".join(problems))


def _build_in(place: Path, name: str, machine: str) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / name).exists() or damage(place / name, machine) is not None:
            build(place / name, machine)
    return place / name


def _places_to_build() -> list[Path]:
    private = sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)
    return [*([beside_packages()] if private else []), *caches_of_user()]
