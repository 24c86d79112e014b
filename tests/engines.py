"""Engines that a machine may lack: a test that needs one asks here."""

from functools import cache
from importlib.util import find_spec

import pytest


def require_horovod() -> None:
    """Skips the test where Horovod is not installed, with the reason that the doctor gives."""
    if (missing := _lacks_horovod()) is not None:
        pytest.skip(missing)


@cache
def _lacks_horovod() -> str | None:
    if find_spec("horovod") is not None:
        return None
    from launcher.horovod_build.failure import why_missing

    return f"Horovod is not installed: {why_missing()}; python -m launcher install-horovod"
