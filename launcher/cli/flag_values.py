"""What the text of a flag means, where one flag stands for a list."""

import shlex
from pathlib import Path
from typing import Any

from launcher.errors import SpecError, UsageError
from launcher.spec import parse_hosts, read_hostfile


def hosts_of(hosts: str | None, hostfile: Path | None) -> list[dict[str, Any]] | None:
    if hosts is not None and hostfile is not None:
        raise UsageError("expected --hosts or --hostfile. Received: both")
    if hosts is not None:
        return parse_hosts(hosts)
    return read_hostfile(hostfile) if hostfile is not None else None


def words_of(ssh: str | None) -> list[str] | None:
    try:
        return None if ssh is None else shlex.split(ssh)
    except ValueError as error:
        raise SpecError(
            f"--ssh: expected a command such as 'ssh -p 2222' ({error}): {ssh!r}"
        ) from None


def codes_of(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(code) for code in text.split(",")]
    except ValueError:
        raise SpecError(f"--restart-codes: expected numbers such as 1,137: {text!r}") from None
