"""Downloads, patches and compiles Horovod, and stores the wheel in the cache.

The cache has the source archive, and for each recipe a directory with the wheel and a log.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
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
# A compiler's own message, in preference to those of CMake, make and pip.
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
    """Builds the wheel and moves it to the cache atomically.

    Args:
        recipe: what to build.
        cache: directory of the wheels; created if missing.
        on_percent: called with the progress, 0 to 100, whenever it grows.

    Raises:
        LauncherError: the source could not be downloaded; the text has the end of pip's log.
        BuildError: it does not compile; the text has the lines around the first error.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # In the cache itself: a rename is atomic only within one file system.
        scratch = tempfile.TemporaryDirectory(prefix=".build-", dir=cache)
    except OSError as error:
        raise UsageError(
            f"the wheel cache must be a writable directory. "
            f"Received: {cache} ({error.strerror}). Choose another with --cache-dir"
        ) from error
    log = cache / f"{recipe.cache_name}.log"
    with scratch as name:
        directory = Path(name)
        archive = _fetch(cache, directory, log)
        unpack(archive, directory)
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
        raise LauncherError(f"the build of Horovod succeeded but made no wheel; its log: {log}")
    return wheel


def install_wheel(wheel: Path) -> None:
    """Installs the wheel into this Python's environment, replacing an installed Horovod."""
    handle, log = tempfile.mkstemp(prefix="install-horovod-", suffix=".log")
    os.close(handle)
    _pip(["install", "--force-reinstall", "--no-deps", str(wheel)], os.environ, Path(log))
    Path(log).unlink()


def unpack(archive: Path, directory: Path) -> None:
    """Unpacks the source, by the rules for data of PEP 706 if this Python knows them."""
    with tarfile.open(archive) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        file.extractall(directory)


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
    """The compiler's own first error, else the first line with an error, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    for pattern in (_COMPILERS_ERROR, _ERROR):
        if (found := next(filter(pattern.search, lines), None)) is not None:
            return found
    return lines[-1] if lines else "the build printed nothing"


def _publish(finished: Path, destination: Path) -> None:
    """Moves the wheel's directory into the cache, replacing an older one."""
    if destination.exists():
        shutil.rmtree(destination)
    try:
        finished.rename(destination)
    except OSError:
        # Another build of the same recipe has finished first; its wheel is equivalent.
        if not destination.exists():
            raise


def _pip(
    arguments: list[str],
    environment: Mapping[str, str],
    log: Path,
    on_percent: Callable[[int], None] = lambda percent: None,
) -> None:
    """Runs pip with its output in `log`; a LauncherError has the lines around the first error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    shown: deque[str] = deque(maxlen=_LINES_SHOWN)
    # After the first error follow only other compile jobs and pip's own tracebacks.
    still_shown = sys.maxsize
    reached = -1
    # In its own session, so that an interrupt can kill its compilers too.
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
