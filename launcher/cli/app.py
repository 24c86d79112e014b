"""The verbs of the command line.

Each is a module with one function `command`, imported only when it is called: help is immediate.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from launcher.errors import exit_code_of
from launcher.version import VersionFlag

HELP = "Start a distributed training job, monitor it, and restart it from its last checkpoint."

_RUN, _INSPECT, _SET_UP = "Run", "Inspect", "Set up"


@dataclass(frozen=True)
class Verb:
    """`summary` is its line in `panel` of the help; `settings` are Click's context settings."""

    module: str
    summary: str
    panel: str
    hidden: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


# `launcher run python train.py --epochs 2`: options after the first word belong to the program.
_PROGRAM: dict[str, Any] = {"allow_interspersed_args": False}
_PASSED_ON = {**_PROGRAM, "ignore_unknown_options": True, "help_option_names": []}

VERBS = {
    "run": Verb("run", "Run a job, and restart it when it fails.", _RUN, settings=_PROGRAM),
    "submit": Verb("submit", "Start a job in the background.", _RUN, settings=_PROGRAM),
    "render": Verb("render", "Print what would run, and run nothing.", _RUN, settings=_PROGRAM),
    "train": Verb("train", "Train a model: launcher.train.", _RUN, settings=_PASSED_ON),
    "cancel": Verb("cancel", "Stop a job; its ranks save first.", _RUN),
    "status": Verb("status", "Show the state of a job, rank by rank.", _INSPECT),
    "logs": Verb("logs", "Print the logs of a job's ranks.", _INSPECT),
    "list": Verb("list", "List all jobs, the newest last.", _INSPECT),
    "report": Verb("report", "Write a report on one run, or on two side by side.", _INSPECT),
    "doctor": Verb("doctor", "Check this machine, and suggest fixes.", _SET_UP),
    "install-horovod": Verb("install_horovod", "Build Horovod for this TensorFlow.", _SET_UP),
    # Called in containers.
    "join": Verb("join", "Join a job as one of its containers.", _RUN, True, _PROGRAM),
    "health": Verb("health", "Check that the ranks in this container progress.", _INSPECT, True),
}


def main() -> None:
    """Runs one verb and exits: 0 done, 1 the job failed, 2 wrong usage, 143 or 130 stopped."""
    app = typer.Typer(
        cls=Verbs,
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    sys.exit(exit_code_of(app))


def load(name: str) -> TyperCommand:
    """The command of a verb; imports its module."""
    verb = VERBS[name]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    action = importlib.import_module(f"launcher.cli.{verb.module}").command
    app.command(name, context_settings=dict(verb.settings))(action)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


class Verbs(TyperGroup):
    """Lists the verbs without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": {name: Unloaded(name) for name in VERBS}})


class Unloaded(TyperCommand):
    """A verb as the help lists it; loads the command when it is called."""

    def __init__(self, name: str) -> None:
        verb = VERBS[name]
        super().__init__(name, help=verb.summary, rich_help_panel=verb.panel, hidden=verb.hidden)

    def make_context(self, info_name: str | None, *arguments: Any, **options: Any) -> Any:
        assert self.name is not None
        return load(self.name).make_context(info_name, *arguments, **options)


def _options(version: VersionFlag = False) -> None:
    """Accepts the options before the verb."""
