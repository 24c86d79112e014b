"""What a test does with each command of a page: run it, check all of its words, or say why neither.

`check` reads a command as its program would: options, values, files and modules must be there. It
returns None when that is all that is to be done, a `Program` that the page itself holds and that is
then run, or `NotRun` with the reason.
"""

import io
import itertools
import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer

from launcher.cli import render
from launcher.cli.app import load
from launcher.train import __main__ as trainer
from launcher.train.config import load_config
from tests.mutants.options import options as mutants_options
from tests.processes import REPOSITORY
from tests.soak.options import options as soak_options

_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_TARGETS = re.compile(r"^([a-z-]+):", re.MULTILINE)


@dataclass(frozen=True)
class NotRun:
    """A command that this machine does not run, and why."""

    reason: str


@dataclass(frozen=True)
class Program:
    """A command that runs a program of the page, or that is about a run the page has started."""

    name: str


Outcome = NotRun | Program | None


def check(command: str, programs: Sequence[str]) -> Outcome:
    """Checks one command. Raises ValueError, or what its program raises, where it is wrong.

    Args:
        command: As a shell would take it.
        programs: The names of the programs that the page holds.
    """
    words = shlex.split(command)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if words[:2] == ["python", "-m"] and words[2] == "launcher":
        return _launcher(words[3:], programs)
    known = {
        "launcher": _launcher,
        "python": _python,
        "mpirun": _ranks,
        "horovodrun": _ranks,
        "srun": _ranks,
        "make": _make,
        "pip": _pip,
        "kubectl": _kubectl,
    }
    name = words[0].removeprefix(".venv/bin/")
    if name in known:
        return known[name](words[1:], programs)
    for program, reason in _ELSEWHERE.items():
        if name == program:
            return NotRun(reason)
    raise ValueError(f"nothing here knows how to check: {command}")


# What pages call the reader's program; the front page holds one of that name.
READERS_OWN = "my_train.py"

# Verbs that are run, not only parsed: about the newest run, or a folder, which the page has made.
_OF_A_RUN = ("status", "logs", "list", "report")

_ELSEWHERE = {
    "docker": "needs a Docker engine and minutes of building: make test-docker",
    "pre-commit": "changes this repository's git hooks; the hook is `make lint`",
    "source": "changes the shell it is typed in",
}


def _python(words: list[str], programs: Sequence[str]) -> Outcome:
    if words[0] == "-m":
        module, arguments = words[1], words[2:]
        if module == "launcher.train":
            outcome = _train(arguments)
            own = [name for name in programs if f" {Path(name).stem}:" in f" {' '.join(words)}"]
            return Program(own[0]) if own else outcome
        if module.split(".")[0] not in ("benchmarks", "launcher", "syncbn", "tests"):
            raise ValueError(f"a module of nobody's: {module}")
        path = REPOSITORY / module.replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            raise ValueError(f"no program {module}")
        if module.startswith("benchmarks."):
            return NotRun("a measurement of minutes")
        return None
    file = words[0]
    if file in programs:
        return Program(file)
    if file == READERS_OWN:
        return None
    if not (REPOSITORY / file).is_file():
        raise ValueError(f"no program {file}: neither on the page nor in the repository")
    if file.startswith("benchmarks/"):
        return NotRun("a measurement of minutes")
    return None  # of examples/, which have a test of their own


def _ranks(words: list[str], programs: Sequence[str]) -> Outcome:
    """`mpirun` and `horovodrun`: what follows their options is a command again."""
    for index, word in enumerate(words):
        if word in ("python", ".venv/bin/python"):
            return check(shlex.join(words[index:]), programs)
    raise ValueError(f"no program: {words}")


def check_job(file: Path) -> None:
    """Renders the job of a TOML file. Raises LauncherError where a field is wrong."""
    _invoke(render.command, ["--config", str(file)])


def _train(words: list[str]) -> Outcome:
    def parsed(flags: dict[str, Any], file: Any) -> int:
        if file is not None and not (REPOSITORY / file).exists():
            file = None  # a file of the reader's; blocks of TOML are checked by themselves
        load_config(flags, file)
        return 0

    _invoke(trainer._command(parsed), words)
    return None


def _launcher(words: list[str], programs: Sequence[str]) -> Outcome:
    if words == ["--help"]:
        return None
    verb, arguments = words[0], words[1:]
    if verb in ("run", "submit", "render"):
        own = {"--wait", "--quiet", "-q", "--json"}
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        flags = [word for word in arguments[:cut] if word not in own]
        asked = check(shlex.join(arguments[cut + 1 :]), programs) if cut < len(arguments) else None
        if "--help" in flags:
            return None
        if "--config" in flags:
            return None  # a file of the reader's; blocks of TOML are checked by themselves
        secrets = {b: "secret" for a, b in itertools.pairwise(flags) if a == "--env"}
        with patch.dict(os.environ, {k: v for k, v in secrets.items() if "=" not in k}):
            _invoke(render.command, [*flags, *arguments[cut:]])
        if "--target" in flags or any(flag.startswith("--host") for flag in flags):
            return NotRun("needs a cluster, other hosts or a Docker engine; its manifests do not")
        return asked if verb == "run" else None
    if "--help" not in arguments:
        load(verb).make_context(verb, [*arguments])
    about_ours = all(word.startswith(("-", "runs/")) or word.isdigit() for word in arguments)
    return Program(verb) if verb in _OF_A_RUN and about_ours else None


def _make(words: list[str], programs: Sequence[str]) -> Outcome:
    targets = _TARGETS.findall((REPOSITORY / "Makefile").read_text())
    for word in words:
        if word.startswith("ARGS="):
            _arguments_of_make(words[0], shlex.split(word.removeprefix("ARGS=")))
        elif not word.startswith("MACHINE=") and word not in targets:
            raise ValueError(f"make has no target {word}: {targets}")
    return None


def _arguments_of_make(target: str, arguments: list[str]) -> None:
    if target == "train":
        _train(arguments)
    elif target == "mutants":
        mutants_options().parse_args(arguments)
    elif target == "soak":
        soak_options().parse_args(arguments)
    elif not target.startswith("test"):
        raise ValueError(f"make {target} takes no ARGS")


def _pip(words: list[str], programs: Sequence[str]) -> Outcome:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:\.|syncbn)\[([\w,]+)\]", " ".join(words)):
        unknown = set(extras.split(",")) - set(project["optional-dependencies"])
        if unknown:
            raise ValueError(f"no such extras: {unknown}")
    return NotRun("installs packages; the wheel is installed by tests/test_distribution.py")


def _kubectl(words: list[str], programs: Sequence[str]) -> Outcome:
    for option, value in itertools.pairwise(words):
        if option in ("-f", "-k") and not (REPOSITORY / value).exists():
            raise ValueError(f"no such file: {value}")
    return NotRun("needs a Kubernetes cluster: make test-cluster")


def _invoke(function: Any, words: list[str]) -> None:
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_interspersed_args": False})(function)
    command = typer.main.get_command(app)
    with redirect_stdout(io.StringIO()):
        command.main(args=list(words), prog_name="command", standalone_mode=False)
