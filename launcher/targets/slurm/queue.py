"""Slurm's queue: the jobs that squeue shows, and the commands that change them.

Slurm forgets a job some minutes after its end (MinJobAge).
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import LauncherError, MissingToolError

_SECONDS = 60.0  # the commands try again by themselves while slurmctld restarts
MARK = "launcher:"  # how the comments of our jobs begin; the digest of the script follows

# Field of squeue: width. Longer values are cut off.
_FIELDS = {
    "JobID": 24,
    "Name": 72,
    "State": 24,
    "Reason": 200,
    "NumNodes": 12,
    "NodeList": 200,
    "Partition": 72,
    "SubmitTime": 24,
    "RestartCnt": 12,
    "exit_code": 12,
    "Comment": 72,
}
_UNREACHABLE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were transmitted",
    "Transport endpoint",
)


class SlurmError(LauncherError):
    """A command of Slurm has failed; the text is what it printed."""


class UnreachableError(LauncherError):
    """Slurm's controller does not answer; it may later."""


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue shows it; `state` and `reason` in Slurm's words.

    `exit_code` is that of the script, 0 while it runs; `restarts` counts how often it was queued
    again.
    """

    id: int
    name: str
    state: str
    reason: str
    nodes: int
    node_list: str
    partition: str
    submitted: str
    restarts: int
    exit_code: int
    comment: str

    @property
    def ours(self) -> bool:
        return self.comment.startswith(MARK)


def jobs(*filters: str) -> list[QueuedJob]:
    """Your jobs that Slurm knows, ended ones too, the oldest first. Raises LauncherError."""
    wanted = ",".join(f"{name}:{width}" for name, width in _FIELDS.items())
    me = f"--user={os.geteuid()}"
    text = command("squeue", "--noheader", "--states=all", me, f"--Format={wanted}", *filters)
    return sorted(map(_parse, text.splitlines()), key=lambda job: job.id)


def command(
    *words: str, text: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """The output of a command of Slurm, which reads `text`.

    Raises MissingToolError, UnreachableError, or SlurmError with what the command printed.
    """
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
            env=None if environment is None else {**os.environ, **environment},
        )
    except FileNotFoundError:
        raise MissingToolError(
            f"{words[0]} is not installed: use this target on a login node of a Slurm cluster "
            "(Debian: apt-get install slurm-client)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{words[0]} has not answered within {_SECONDS:g} s") from None
    if done.returncode == 0:
        return done.stdout
    said = _said(words[0], done.stderr or done.stdout)
    if any(sign in said for sign in _UNREACHABLE):
        raise UnreachableError(f"Slurm's controller does not answer: {said}; see: scontrol ping")
    raise SlurmError(said or f"{words[0]} ended with {done.returncode}")


def _said(program: str, text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    cut = [line.removeprefix(f"{program}: ").removeprefix("error: ") for line in lines]
    return "; ".join(dict.fromkeys(cut))


def _parse(line: str) -> QueuedJob:
    fields: dict[str, Any] = {}
    start = 0
    for name, width in _FIELDS.items():
        fields[name] = line[start : start + width].strip()
        start += width
    return QueuedJob(
        id=int(fields["JobID"]),
        name=fields["Name"],
        state=fields["State"],
        reason=fields["Reason"],
        nodes=int(fields["NumNodes"] or 0),
        node_list=fields["NodeList"],
        partition=fields["Partition"],
        submitted=fields["SubmitTime"],
        restarts=int(fields["RestartCnt"] or 0),
        exit_code=_exit_code(fields["exit_code"]),
        comment=fields["Comment"],
    )


def _exit_code(text: str) -> int:
    """From `143:0`, or from a wait status (36608) in the versions of squeue that print that."""
    code, _, number = text.partition(":")
    if number:
        return int(code) or (128 + int(number) if int(number) else 0)
    status = int(code or 0)
    return status >> 8 or (128 + (status & 127) if status & 127 else 0)
