"""Loads functions that the command line names as `package.module:function`."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.errors import UsageError


def load_function(option: str, reference: str) -> Callable[..., Any]:
    """Imports a function; modules in the working directory are found as well.

    Args:
        option: The option that names it, for error messages.
        reference: `package.module:function`.

    Raises:
        UsageError: The module or function does not exist, or the import fails.
    """
    module_name, _, function_name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # importing a user's module may raise anything
        raise UsageError(
            f"{option} {reference}: cannot import it ({type(error).__name__}: {error})"
        ) from error
    if not callable(function):
        raise UsageError(f"{option} {reference}: expected a function. Received: {function!r}")
    return function
