"""`python -m launcher install-horovod`: builds Horovod for the installed TensorFlow, once.

The wheel is cached, so that the next environment installs it in seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from launcher.errors import BuildError, LauncherError
from launcher.horovod_build.build import build_wheel, cached_wheel, default_cache, install_wheel
from launcher.horovod_build.failure import forget_failure, keep_failure, known_failure
from launcher.horovod_build.installed import fault_of_installed, installed_version
from launcher.horovod_build.machine import check_build_tools, find_recipe
from launcher.horovod_build.recipe import VERSION, Recipe

CacheDirectory = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="The cache of wheels.", show_default="~/.cache/syncbn/wheels"),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="Reduce GPU tensors through NCCL; needs nvcc.")]
Force = Annotated[bool, typer.Option("--force", help="Build even if Horovod works.")]
Once = Annotated[
    bool,
    typer.Option(
        "--once",
        help="Do not repeat a failed build while nothing has changed; "
        "print in two lines why it failed, and what is used instead.",
    ),
]
_INSTEAD = (
    "Ranks communicate over MPI or tf.distribute instead, and tests that need Horovod are skipped. "
    "To try again: python -m launcher install-horovod"
)


def command(
    cache_dir: CacheDirectory = None,
    gpu: Gpu = False,
    force: Force = False,
    once: Once = False,
) -> None:
    """Build Horovod for this TensorFlow, with Gloo and MPI, and install it.

    Needs a C++ compiler. The first build takes minutes; later ones use the cached wheel and take
    seconds. The exit code is 0 only if Horovod works afterwards.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        recipe = find_recipe(gpu)
        if once and not force and (reason := known_failure(recipe)) is not None:
            raise BuildError(reason, reason)
        _install(recipe, (cache_dir or default_cache()).absolute(), force, console)
    except LauncherError as error:
        if not once:
            raise
        print(f"Horovod could not be built: {_in_one_line(error)}\n{_INSTEAD}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    forget_failure()


def _in_one_line(error: LauncherError) -> str:
    if isinstance(error, BuildError):
        return error.reason
    first, *others = (line.strip() for line in str(error).splitlines())
    return " ".join([first, *[line for line in others if line.startswith("ERROR")][:1]])


def _install(recipe: Recipe, cache: Path, force: bool, console: Console) -> None:
    if not force:
        fault = fault_of_installed(recipe)
        if fault is None:
            console.print(f"Horovod {installed_version()} is installed and works.")
            return
        console.print(f"{fault}.")
        if _install_kept(recipe, cache, console):
            return
    check_build_tools(recipe.gpu)
    started = time.monotonic()
    console.print(f"Building Horovod {VERSION} for TensorFlow {recipe.tensorflow}, {recipe.mpi}:")
    try:
        wheel = _build(recipe, cache, console)
    except BuildError as error:
        keep_failure(recipe, error.reason)
        raise
    install_wheel(wheel)
    if (fault := fault_of_installed(recipe)) is not None:
        raise LauncherError(f"the Horovod just built does not work: {fault}")
    console.print(f"Horovod {recipe.version} works, built in {time.monotonic() - started:.0f} s.")
    console.print(f"Its wheel is cached in {wheel.parent}")


def _install_kept(recipe: Recipe, cache: Path, console: Console) -> bool:
    """Installs the cached wheel of an equal recipe; False if there is none."""
    wheel = cached_wheel(recipe, cache)
    if wheel is None:
        return False
    install_wheel(wheel)
    fault = fault_of_installed(recipe)
    if fault is not None:
        raise LauncherError(
            f"the wheel cached in {wheel.parent} does not work: {fault}. "
            "Build it again: python -m launcher install-horovod --force"
        )
    console.print(f"Horovod {recipe.version} works, installed from {wheel.parent}")
    return True


def _build(recipe: Recipe, cache: Path, console: Console) -> Path:
    if not console.is_terminal:
        return build_wheel(recipe, cache, _every_tenth(console))
    columns = (TextColumn("compiling"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("compiling", total=100)
        return build_wheel(recipe, cache, lambda percent: progress.update(task, completed=percent))


def _every_tenth(console: Console) -> Callable[[int], None]:
    """For logs: a line per ten percent instead of a bar."""
    shown = -1

    def on_percent(percent: int) -> None:
        nonlocal shown
        if percent // 10 > shown:
            shown = percent // 10
            console.print(f"  {percent} % compiled")

    return on_percent
