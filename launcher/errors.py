"""All errors of the launcher.

LauncherError                 exit code 1   the job, or something it needs, failed
├── HostError                               a host cannot be reached
├── BuildError                              the compiler failed
└── UsageError                exit code 2   the request is wrong; a retry would fail too
    ├── SpecError                           a field of the job is missing or wrong
    ├── UnknownRunError                     no such run in the output directory
    └── MissingToolError                    a program or package the job needs is not installed
"""

import sys
from collections.abc import Callable


class LauncherError(Exception):
    """Root of the launcher's errors.

    The text is for the user: what, expected, received, and the command that fixes it.
    """

    exit_code = 1


class HostError(LauncherError):
    """A host cannot be reached; it may be reachable later."""


class BuildError(LauncherError):
    """Horovod could not be compiled; a retry with the same tools would fail too.

    Attributes:
        reason: the compiler's own first error and where the whole log is, in one line.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class UsageError(LauncherError):
    """The request is wrong, so no attempt at it can succeed."""

    exit_code = 2


class SpecError(UsageError):
    """A field of the job is missing or wrong; the text names the field."""


class UnknownRunError(UsageError):
    """The output directory has no run of that name."""


class MissingToolError(UsageError):
    """A program or package the job needs is not installed; the text says how to install it."""


def exit_code_of(action: Callable[[], object]) -> int:
    """Runs `action` and turns the launcher's own errors into one line on stderr and a code."""
    try:
        action()
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code
    return 0
