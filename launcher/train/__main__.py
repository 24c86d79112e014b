"""Trains a model on the ranks it is started on.

horovodrun -np 2 python -m launcher.train --dataset digits --model cnn --norm sync
mpirun -np 2 python -m launcher.train --config run.toml --epochs 3
python -m launcher.train --help
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher import options
from launcher.errors import LauncherError
from launcher.train.config import TrainConfig, load_config
from launcher.train.environment import load_tensorflow, rank_from_environment
from launcher.version import VersionFlag

# Typer exports only this leaf of its usage errors.
_COMMAND_LINE_ERROR: Any = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and exits: 0 done, 1 failed, 2 usage error, 143 stopped by SIGTERM after saving."""
    app = typer.Typer(add_completion=False)
    app.command(help="Train a model on the ranks it is started on.")(_command(train))
    command = typer.main.get_command(app)
    name = "python -m launcher.train"
    try:
        sys.exit(command.main(args=arguments, prog_name=name, standalone_mode=False))
    except _COMMAND_LINE_ERROR as error:
        _fail(error.format_message(), 2)
    except LauncherError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def train(flags: dict[str, Any], config_file: Path | None) -> int:
    """Trains and returns the exit code. Loads TensorFlow only after validating the options."""
    config = load_config(flags, config_file)
    load_tensorflow()
    from launcher.train.program import run

    return run(config)


def _command(action: Callable[[dict[str, Any], Path | None], int]) -> Callable[..., int]:
    """A Typer command with an option for each field of TrainConfig."""

    def command(**arguments: Any) -> int:
        return action(options.given(TrainConfig, arguments), arguments["config"])

    file = typer.Option("--config", help="TOML file of these options; flags override it.")
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter("config", keyword, default=None, annotation=Annotated[Path | None, file]),
        inspect.Parameter("version", keyword, default=False, annotation=VersionFlag),
    ]
    return options.with_parameters(command, [*own, *options.parameters(TrainConfig)], None)


def _fail(message: str, code: int) -> None:
    """Prints one line on stderr and exits.

    An error that all ranks share is printed by rank 0 only; one that a single rank has begins with
    its name, and that rank prints it.
    """
    rank = rank_from_environment()
    if rank == 0 or message.startswith(f"rank {rank}: "):
        print(f"launcher.train: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
