"""The command line: `python -m launcher VERB`, also installed as `launcher`.

Each verb is a file in launcher/cli with one function `command`, imported only when it is called, so
that help comes at once.
"""

import importlib
import sys

import typer

from launcher.errors import exit_code_of
from launcher.version import VersionFlag

# verb: (module, its line in the help)
VERBS: dict[str, tuple[str, str]] = {
    "run": ("launcher.cli.run", "Run a job to its end, watched and restarted."),
    "submit": ("launcher.cli.submit", "The same in the background; returns at once."),
    "render": ("launcher.cli.render", "Print what would be run, and run nothing."),
    "status": ("launcher.cli.status", "Where a run stands, rank by rank."),
    "logs": ("launcher.cli.logs", "What the ranks of a run have said."),
    "list": ("launcher.cli.list", "All runs, the newest last."),
    "report": ("launcher.cli.report", "A run on one page, or two side by side."),
    "cancel": ("launcher.cli.cancel", "Stop a run; its ranks save first."),
    "join": ("launcher.cli.join", "One container's part in a job of several."),
    "health": ("launcher.cli.health", "Whether the ranks in this container move."),
    "doctor": ("launcher.cli.doctor", "Check this machine, and say what mends it."),
    "install-horovod": ("launcher.cli.install_horovod", "Build Horovod for this TensorFlow."),
}

HELP = "Start a distributed training job, watch it, and go on from its last checkpoint."


def main() -> None:
    """Runs one verb and exits: 0 done, 1 the job failed, 2 wrong usage, 143 or 130 stopped."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    app = typer.Typer(
        help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    app.callback()(_options)
    for name, (module, summary) in VERBS.items():
        action = importlib.import_module(module).command if name == verb else _only_listed
        # `launcher run python train.py --epochs 2`: what follows the first word is the program's.
        settings = {"allow_interspersed_args": name not in {"run", "submit", "render", "join"}}
        text = None if name == verb else summary  # its own help says more
        app.command(name, help=text, context_settings=settings)(action)
    sys.exit(exit_code_of(app))


def _options(version: VersionFlag = False) -> None:
    """Keeps the verbs as sub-commands even while there is only one."""


def _only_listed() -> None:
    """Stands in the help for a verb that was not called."""


if __name__ == "__main__":
    main()
