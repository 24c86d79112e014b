"""`--version` of both command lines: the versions of syncbn, Python, TensorFlow and Keras."""

import platform
from importlib import metadata
from typing import Annotated

import typer


def versions() -> dict[str, str]:
    """Versions by name; "" for what is not installed."""
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


def _show(wanted: bool) -> None:
    if wanted:
        own, *others = versions().items()
        shown = (f"{name} {version or 'not installed'}" for name, version in others)
        print(f"syncbn {own[1] or 'not installed'} ({', '.join(shown)})")
        raise typer.Exit


VersionFlag = Annotated[
    bool,
    typer.Option("--version", callback=_show, is_eager=True, help="Show the versions and exit."),
]
