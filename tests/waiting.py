"""Waits for what other processes do."""

import time
from collections.abc import Callable


def until(
    condition: Callable[[], object], seconds: float = 20, told: Callable[[], str] = str
) -> None:
    """Waits for the condition. Raises AssertionError with the text of `told` if it stays false."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds:g} s:\n{told()}"
        time.sleep(0.1)
