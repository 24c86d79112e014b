"""Runs the tests of a module on its mutants, each worker in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Literal

from tests.mutants.making import Mutant
from tests.mutants.modules import Module
from tests.processes import REPOSITORY, python_path

Verdict = Literal["killed", "survived", "timeout"]

_LEAST_SECONDS = 90.0
_TIMES_AS_LONG = 8.0
_PASSED, _FAILED = 0, 1


class UnsoundTestsError(Exception):
    """The tests of a module fail without any mutant: they can say nothing about one."""


class Judge:
    """A copy of the repository in `directory`, with a server that tests it."""

    def __init__(self, directory: Path) -> None:
        self._tree = directory / "tree"
        self._output = directory / "output"
        self._edits = 0
        copy_repository(self._tree)
        self._server = subprocess.Popen(
            [sys.executable, str(self._tree / "tests" / "mutants" / "server.py")],
            cwd=self._tree,
            env=_environment(self._tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def measure(self, module: Module) -> list[float]:
        """Seconds that each stage takes where nothing is broken.

        Raises:
            UnsoundTestsError: A test fails.
        """
        seconds = []
        for stage in module.stages:
            began = time.monotonic()
            if self._run(stage, 600.0) != _PASSED:
                raise UnsoundTestsError(f"{module.path}: its tests fail:\n{self._said()}")
            seconds.append(time.monotonic() - began)
        return seconds

    def judge(self, module: Module, mutant: Mutant, usual: Sequence[float]) -> Verdict:
        """What becomes of the mutant; a stage may take some times as long as usual."""
        place = self._tree / mutant.path
        original = place.read_text()
        self._write(place, mutant.source)
        try:
            for stage, seconds in zip(module.stages, usual, strict=True):
                code = self._run(stage, max(_LEAST_SECONDS, _TIMES_AS_LONG * seconds))
                if code is None:
                    return "timeout"
                if code != _PASSED:
                    return "killed"
            return "survived"
        finally:
            self._write(place, original)

    def _write(self, place: Path, source: str) -> None:
        """Python takes a compiled file for that of a source of the same size and second."""
        place.write_text(source)
        self._edits += 1
        os.utime(place, (self._edits, self._edits))

    def _run(self, tests: Sequence[str], seconds: float) -> int | None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {"tests": list(tests), "seconds": seconds, "output": str(self._output)}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer: int | None = json.loads(self._server.stdout.readline())
        return answer

    def _said(self) -> str:
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-30:])


def judge_all(
    jobs: Sequence[tuple[Module, Mutant]],
    directory: Path,
    workers: int,
    told: Callable[[Mutant, Verdict], None],
) -> None:
    """Judges every mutant and tells of each as soon as it is known.

    Raises:
        UnsoundTestsError: The tests of some module fail without any mutant.
    """
    waiting: SimpleQueue[tuple[Module, Mutant]] = SimpleQueue()
    for job in jobs:
        waiting.put(job)
    lock, usual, errors = Lock(), dict[str, list[float]](), list[BaseException]()

    def work(number: int) -> None:
        judge = Judge(directory / f"worker-{number}")
        try:
            while not errors:
                module, mutant = waiting.get_nowait()
                if module.path not in usual:
                    usual[module.path] = judge.measure(module)
                verdict = judge.judge(module, mutant, usual[module.path])
                with lock:
                    told(mutant, verdict)
        except Empty:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            judge.close()

    threads = [Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def copy_repository(place: Path) -> None:
    """What git knows of, and the compiled operations."""
    shutil.rmtree(place, ignore_errors=True)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    compiled = (
        str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("syncbn/native/lib/*")
    )
    for name in [*names.stdout.split("\0"), *compiled]:
        if name and (REPOSITORY / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, place / name)


def _environment(tree: Path) -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": python_path(tree / "tests" / "start_up", tree)}
