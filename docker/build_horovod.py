"""`launcher install-horovod` without the rest of the launcher, which changes more often."""

import typer

from launcher.cli.install_horovod import command

typer.run(command)
