"""Runs tests in forks of one process that has TensorFlow imported, seconds of each run saved.

A line of JSON on stdin is a run: `{"tests": [...], "seconds": 60, "output": "FILE"}`; the answer is
a line with pytest's exit code, null where the run took longer. Nothing of the repository is
imported before the fork: a child reads the mutant from the disk, as the ranks that it starts do.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.02
# What tests import of others, but no plugin of pytest, which it rewrites itself. No operation of
# TensorFlow may run here: its threads do not survive a fork.
_IMPORTED = ("numpy", "tensorflow", "keras", "pytest", "pydantic", "typer", "yaml")


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_run(order["tests"], order["seconds"], order["output"])), flush=True)


def _run(tests: list[str], seconds: float, output: str) -> int | None:
    child = os.fork()
    if child == 0:
        _test(tests, output)
    limit = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < limit:
        time.sleep(_LOOK_SECONDS)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if ended else None
    _end_descendants()
    return status


def _test(tests: list[str], output: str) -> None:
    """The child: it never returns."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    import pytest

    code = 3
    try:
        options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = int(pytest.main([*options, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_descendants() -> None:
    """Kills what the run left, also what has lost its parent: it came to us."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not this folder
    main()
