"""Builds the site as `make docs` does, for the tests that look at it."""

from pathlib import Path

from tests.processes import Launcher


def build_site(single_process: Launcher, target: Path) -> Path:
    """The folder of the site, built with warnings as errors."""
    single_process(
        1,
        "mkdocs",
        ["build", "--strict", "--quiet", "--site-dir", str(target)],
        environment={"NO_MKDOCS_2_WARNING": "1"},
    ).check()
    return target
