"""`launcher install-horovod` without the rest of the launcher, which would invalidate the cache.

python build_horovod.py CACHE WHEELS [--gpu]: builds the wheel, or finds it in CACHE, and copies it
to WHEELS.
"""

import shutil
from pathlib import Path

import typer

from launcher.cli.install_horovod import command
from launcher.horovod_build.build import cached_wheel
from launcher.horovod_build.machine import find_recipe


def build(cache: Path, wheels: Path, gpu: bool = False) -> None:
    command(cache, gpu)
    wheel = cached_wheel(find_recipe(gpu), cache)
    assert wheel is not None
    wheels.mkdir(exist_ok=True)
    shutil.copy(wheel, wheels)


typer.run(build)
