"""Where the library of kernels is: in the package, beside the packages, or in the user's cache.

A wheel brings it in the package. Elsewhere it is built once, with the C++ compiler at hand;
`python -m syncbn.native.build` does that ahead of time and says what went wrong.
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
    """The library of these sources for this machine; builds it first if there is none.

    Of several processes that come at once one builds and the others wait. One that is damaged, or
    for another machine, is never loaded; where it can be it is replaced.

    Raises:
        BuildError: There is none, and no compiler, no place to write, or the compiler failed.
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
                _log.warning("%s; used instead: %s", problem, built)
            return built
    if not _places_to_build():
        problems.append("there is no place to build the kernels in: set XDG_CACHE_HOME or HOME")
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
