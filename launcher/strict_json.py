"""JSON as the standard defines it, without NaN and infinities: they become null."""

import json
import math
from typing import Any


def dumps(content: Any, **options: Any) -> str:
    """`json.dumps` whose text every JSON parser accepts."""
    return json.dumps(finite(content), allow_nan=False, **options)


def finite(content: Any) -> Any:
    """The same content, with None for each number that is NaN or infinite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content
