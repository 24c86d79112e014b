"""The user's own functions, named as `package.module:function` on the command line."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.errors import UsageError


def load_function(option: str, reference: str) -> Callable[..., Any]:
    """Imports the function; the working directory counts as a place for modules.

    Raises:
        UsageError: There is no such module or function; an error inside the module is told.
    """
    module_name, _, function_name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise UsageError(
            f"{option} {reference}: cannot import it ({type(error).__name__}: {error})"
        ) from error
    if not callable(function):
        raise UsageError(f"{option} {reference}: expected a function. Received: {function!r}")
    return function
