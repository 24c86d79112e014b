"""Why Horovod is not installed here. A build that failed is kept: nobody repeats it in vain.

The record lies beside the packages. It counts while the compiler, its settings, CMake, make,
TensorFlow, MPI and our recipe are what they were.
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
    """Keeps why the build failed; where nothing can be written, the next one tries again."""
    with suppress(OSError):
        _RECORD.parent.mkdir(parents=True, exist_ok=True)
        record = {"circumstances": _circumstances(recipe), "reason": reason}
        _RECORD.write_text(json.dumps(record) + "\n")


def forget_failure() -> None:
    """Forgets an earlier failure: Horovod is there now."""
    with suppress(OSError):
        _RECORD.unlink()


def known_failure(recipe: Recipe) -> str | None:
    """Why a build failed under the circumstances there are now; None if none did."""
    try:
        record = json.loads(_RECORD.read_text())
        if record["circumstances"] == _circumstances(recipe):
            return str(record["reason"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def why_missing(gpu: bool = False) -> str:
    """Why Horovod is not installed, in one line: what failed, what a build lacks, or no build."""
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
    """What the compiler says to a small program: a part of it that was missing may be there now."""
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
