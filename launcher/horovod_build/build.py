"""Fetches, edits and compiles Horovod, and keeps the wheel in the cache.

The cache holds the source archive, one directory a recipe with its wheel, and one log a recipe.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from launcher.errors import BuildError, LauncherError, UsageError
from launcher.horovod_build.machine import build_environment
from launcher.horovod_build.recipe import ARCHIVE, SHA256, VERSION, Recipe

_PERCENT = re.compile(r"^\s*\[\s*(\d+)%\]")
_ERROR = re.compile(r"\berror(:| at | \d)", re.IGNORECASE)
# Ahead of what CMake, make and pip say about it.
_COMPILERS_ERROR = re.compile(r"(?:^|: )(?:fatal )?error: ")
_LINES_SHOWN = 15


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/syncbn/wheels`, by default `~/.cache/syncbn/wheels`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "syncbn", "wheels")


def cached_wheel(recipe: Recipe, cache: Path) -> Path | None:
    """The wheel of an earlier build by an equal recipe, or None."""
    return next((cache / recipe.cache_name).glob("horovod-*.whl"), None)


def build_wheel(recipe: Recipe, cache: Path, on_percent: Callable[[int], None]) -> Path:
    """Builds the wheel and puts it into the cache in one step, so that no half-made one is found.

    Args:
        recipe: what to build.
        cache: directory of the wheels; made if missing.
        on_percent: called with the part compiled, 0 to 100, whenever it grows.

    Raises:
        LauncherError: the source could not be fetched; the text holds the end of pip's log.
        BuildError: it does not compile; the text holds the lines around the first error.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Beside the final place: only inside one file system is the last move one step.
        scratch = tempfile.TemporaryDirectory(prefix=".build-", dir=cache)
    except OSError as error:
        raise UsageError(
            f"the wheel cache must be a directory that can be written. "
            f"Received: {cache} ({error.strerror}). Choose another with --cache-dir"
        ) from error
    log = cache / f"{recipe.cache_name}.log"
    with scratch as name:
        directory = Path(name)
        archive = _fetch(cache, directory, log)
        shutil.unpack_archive(archive, directory)
        source = directory / ARCHIVE.removesuffix(".tar.gz")
        for edit in recipe.edits:
            edit.apply(source)
        finished = directory / "wheel"
        command = ["wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        command += ["--wheel-dir", str(finished), str(source)]
        try:
            _pip(command, build_environment(recipe), log, on_percent)
        except LauncherError as error:
            first = _first_error(log).replace(f"{source}/", "")
            raise BuildError(str(error), f"{first} (log: {log})") from None
        _publish(finished, cache / recipe.cache_name)
    wheel = cached_wheel(recipe, cache)
    if wheel is None:
        raise LauncherError(f"the build of Horovod ended well but left no wheel; its log: {log}")
    return wheel


def install_wheel(wheel: Path) -> None:
    """Installs the wheel into this Python's environment, over any Horovod that is there."""
    handle, log = tempfile.mkstemp(prefix="install-horovod-", suffix=".log")
    os.close(handle)
    _pip(["install", "--force-reinstall", "--no-deps", str(wheel)], os.environ, Path(log))
    Path(log).unlink()


def _fetch(cache: Path, directory: Path, log: Path) -> Path:
    """The source archive with the right checksum: from the cache, else from the package index."""
    kept = cache / ARCHIVE
    if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == SHA256:
        return kept
    pinned = directory / "requirements.txt"
    pinned.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
    download = ["download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    _pip([*download, "--dest", str(directory), "--requirement", str(pinned)], os.environ, log)
    return (directory / ARCHIVE).replace(kept)


def _first_error(log: Path) -> str:
    """The compiler's own first error, else the first line that speaks of one, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    for pattern in (_COMPILERS_ERROR, _ERROR):
        if (found := next(filter(pattern.search, lines), None)) is not None:
            return found
    return lines[-1] if lines else "the build said nothing"


def _publish(finished: Path, place: Path) -> None:
    """Moves the wheel's directory to its place; an older one there makes room."""
    if place.exists():
        shutil.rmtree(place)
    try:
        finished.rename(place)
    except OSError:
        # Another build of the same recipe was faster; its wheel is as good.
        if not place.exists():
            raise


def _pip(
    arguments: list[str],
    environment: Mapping[str, str],
    log: Path,
    on_percent: Callable[[int], None] = lambda percent: None,
) -> None:
    """Runs pip with all it prints in `log`; LauncherError holds the lines where it failed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    shown: deque[str] = deque(maxlen=_LINES_SHOWN)
    # What follows the first error are the other jobs' ends and pip's own tracebacks.
    still_shown = sys.maxsize
    reached = -1
    # In a session of its own, so that an interrupt can end the compilers under it too.
    with (
        log.open("w") as kept,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as pip,
    ):
        try:
            for line in pip.stdout or ():
                kept.write(line)
                if still_shown > 0:
                    shown.append(line.rstrip())
                    still_shown -= 1
                if still_shown > _LINES_SHOWN and _ERROR.search(line):
                    still_shown = _LINES_SHOWN // 2
                if (found := _PERCENT.match(line)) and int(found[1]) > reached:
                    reached = int(found[1])
                    on_percent(reached)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(pip.pid, signal.SIGKILL)
            raise
    if pip.returncode != 0:
        raise LauncherError(
            f"pip {arguments[0]} failed for Horovod {VERSION}:\n"
            + "\n".join(f"    {line}" for line in shown)
            + f"\nThe whole log: {log}"
        )
