"""Records why a build of Horovod failed, so that `make` does not repeat it.

The record is in the Python environment. It is valid as long as the compiler, its settings, CMake,
make, TensorFlow, MPI and the recipe are unchanged.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from launcher.errors import LauncherError
from launcher.horovod_build.machine import (
    check_build_tools,
    compiler,
    find_program,
    find_recipe,
    version_text,
)
from launcher.horovod_build.recipe import Recipe

_RECORD = Path(sys.prefix, "lib", "syncbn", "horovod-failure.json")
_SETTINGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")


def keep_failure(recipe: Recipe, reason: str) -> None:
    """Records why the build failed; without a record the next call builds again."""
    with suppress(OSError):
        _RECORD.parent.mkdir(parents=True, exist_ok=True)
        record = {"circumstances": _circumstances(recipe), "reason": reason}
        _RECORD.write_text(json.dumps(record) + "\n")


def forget_failure() -> None:
    """Deletes the record: Horovod is installed now."""
    with suppress(OSError):
        _RECORD.unlink()


def known_failure(recipe: Recipe) -> str | None:
    """Why a build failed with the current tools; None if none is recorded."""
    try:
        record = json.loads(_RECORD.read_text())
        if record["circumstances"] == _circumstances(recipe):
            return str(record["reason"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def why_missing(gpu: bool = False) -> str:
    """Why Horovod is not installed, in one line: a failed build, a missing tool, or no build."""
    try:
        recipe = find_recipe(gpu)
        if (reason := known_failure(recipe)) is not None:
            return reason
        check_build_tools(gpu)
    except LauncherError as error:
        return str(error).splitlines()[0].partition(". ")[0]
    return "it has not been built"


def _circumstances(recipe: Recipe) -> str:
    tools = [find_program(name) for name in (compiler(), "cmake", "make")]
    facts = [recipe.version, [os.environ.get(name) for name in _SETTINGS]]
    facts += [[str(tool), version_text(tool)] for tool in tools if tool is not None]
    if tools[0] is not None:
        facts.append(_trial(tools[0]))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _trial(program: Path) -> list[str]:
    """The compiler's output for a small program, which changes when a missing part is installed."""
    with tempfile.TemporaryDirectory() as directory:
        command = [str(program), "-x", "c++", "-", "-o", "program"]
        source = "#include <string>\nint main() { return std::string().size(); }\n"
        try:
            done = subprocess.run(
                command,
                input=source,
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return [type(error).__name__]
    # Names of temporary files, /tmp/ccXXXXXX.o, differ each time.
    return [str(done.returncode), re.sub(r"/\S*/cc\w+", "", done.stderr)]
