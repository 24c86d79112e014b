"""Trains a model on the ranks it is started on.

horovodrun -np 2 python -m launcher.train --dataset digits --model cnn --norm sync
mpirun -np 2 python -m launcher.train --config run.toml --epochs 3
python -m launcher.train --help
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from launcher.errors import LauncherError
from launcher.train.config import TrainConfig, load_config
from launcher.train.environment import load_tensorflow
from launcher.version import VersionFlag

# Typer exports only this leaf of its usage errors.
_COMMAND_LINE_ERROR: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Trains, and exits: 0 done, 1 failed, 2 wrong usage, 143 stopped by SIGTERM after saving."""
    app = typer.Typer(add_completion=False)
    app.command(help="Trains a model on the ranks it is started on.")(_command(train))
    command = typer.main.get_command(app)
    try:
        sys.exit(command.main(prog_name="python -m launcher.train", standalone_mode=False))
    except _COMMAND_LINE_ERROR as error:
        _fail(error.format_message(), 2)
    except LauncherError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def train(flags: dict[str, Any], config_file: Path | None) -> int:
    """Runs one training and returns the exit code. Loads TensorFlow only once the request holds."""
    config = load_config(flags, config_file)
    load_tensorflow()
    from launcher.train.session import run_session

    return run_session(config)


def _command(action: Callable[[dict[str, Any], Path | None], int]) -> Callable[..., int]:
    """A Typer command with an option for each field of TrainConfig: none is named twice."""

    def command(**arguments: Any) -> int:
        file = arguments.pop("config")
        del arguments["version"]
        return action(arguments, file)

    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--config", help="TOML file of these options; flags win.")
            ],
        ),
        inspect.Parameter(
            "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VersionFlag
        ),
    ]
    for name, field in TrainConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        switch = field.annotation is bool
        shown = f"{'' if field.default else 'no-'}{flag[2:]}" if switch else field.default
        default = "" if shown is None else f" \\[default: {shown}]"  # a plain [ begins a style
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if switch else flag,
            help=f"{field.description}{default}",
            metavar=None if switch else _kind_of_value(field.annotation),
        )
        # Values stay strings for pydantic, which reads those of the config file too.
        annotation = Annotated[bool | None, option] if switch else Annotated[str | None, option]
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _kind_of_value(annotation: Any) -> str:
    candidates = [annotation, *get_args(annotation)]
    return next(
        (kind.__name__.lower() for kind in (int, float, Path) if kind in candidates), "name"
    )


def _fail(message: str, code: int) -> None:
    """One line on stderr; of equal errors on all ranks only rank 0's is shown.

    What only one rank has to say begins with its name.
    """
    if _rank() == 0 or message.startswith(f"rank {_rank()}: "):
        print(f"launcher.train: {message}", file=sys.stderr)
    sys.exit(code)


def _rank() -> int:
    for variable in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


if __name__ == "__main__":
    main()
