"""The versions of what computes, for the build-info metric, the journal and the report."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Program to version; "" for what is not installed."""
    return {
        "version": _version("syncbn"),
        "python": platform.python_version(),
        "tensorflow": _version("tensorflow") or _version("tensorflow-cpu"),
        "keras": _version("keras"),
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
