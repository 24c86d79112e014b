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

from syncbn.native.compiler import BuildError, build, damage, file_name

_log = logging.getLogger(__name__)

_PACKAGED = Path(__file__).parent / "lib"


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
    for place in (_PACKAGED, _beside_packages(), *_of_user()):
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


def _beside_packages() -> Path:
    """In a virtual environment of one's own as private as the packages; images have it here too."""
    return Path(sys.prefix) / "lib" / "syncbn"


def _of_user() -> list[Path]:
    """The user's cache; a container's user may have no home."""
    try:
        return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "syncbn"]
    except RuntimeError:
        return []


def _places_to_build() -> list[Path]:
    private = sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)
    return [*([_beside_packages()] if private else []), *_of_user()]
