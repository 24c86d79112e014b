"""The launcher's own lines: events as sentences."""

from collections.abc import Mapping
from typing import Any


def cause_lines(cause: Mapping[str, Any], log: str | None) -> list[str]:
    """A failure: one line with the cause, then the last lines of the rank, then a hint."""
    lines = [f"{cause['class']}: {cause['summary']}"]
    lines += [f"    | {line}" for line in cause["last_lines"]]
    if cause["hint"]:
        lines.append(f"    hint: {cause['hint']}")
    if log is not None and cause["last_lines"]:
        lines.append(f"    log:  {log}")
    return lines


def restart_line(next_attempt: int, most: int, seconds: float, checkpoint: int | None) -> str:
    from_where = "" if checkpoint is None else f" from the checkpoint of step {checkpoint}"
    return f"restart {next_attempt} of {most}{from_where} in {seconds:.1f} s"


def stopping_line(signal: str, at_once: bool) -> str:
    if at_once:
        return f"{signal} again: killing the ranks"
    return f"{signal}: the ranks save and stop; a second signal kills them"


def end_line(event: Mapping[str, Any]) -> str:
    restarts = event["restarts"]
    counted = "no restart" if restarts == 0 else f"{restarts} restart{'s' * (restarts > 1)}"
    took = f"after {duration(event['seconds'])}, {counted}, exit code {event['exit_code']}"
    return f"{event['result']} {took}"


def next_commands(name: str, flags: str, running: bool) -> list[str]:
    """The three commands to continue with, and the flags that find the job."""
    if running:
        return [
            f"launcher status {name} --watch{flags}",
            f"launcher logs {name} --follow{flags}",
            f"launcher cancel {name}{flags}",
        ]
    return [
        f"launcher status {name}{flags}",
        f"launcher logs {name}{flags}",
        f"launcher list{flags}",
    ]


def duration(seconds: float) -> str:
    """`7.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
