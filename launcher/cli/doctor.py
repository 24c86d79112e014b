"""`launcher doctor`: whether this machine can run a job, and if not, how to fix it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from launcher.cli.target_flags import Output
from launcher.doctor.checks import run_checks
from launcher.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "broken": "red"}


def command(
    output: Output = Path("runs"),
    self_test: Annotated[bool, typer.Option(help="Time an all-reduce between two ranks.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Check what a job needs; each line is ok, a warning, or broken, with the fix.

    Exits with 1 if a requirement is broken.
    """
    console = Console(highlight=False, soft_wrap=True)
    broken = False
    for finding in run_checks(output, self_test):
        broken |= finding.state == "broken"
        if as_json:
            print(json.dumps(asdict(finding)), flush=True)
        else:
            _show(console, finding)
    raise typer.Exit(1 if broken else 0)


def _show(console: Console, finding: Finding) -> None:
    state = (f"{finding.state:<8}", _COLOURS[finding.state])
    console.print(Text.assemble(state, f"{finding.name:<14} {finding.text}"))
    if finding.fix:
        console.print(Text(f"{'':22} fix: {finding.fix}", style="bold"))
