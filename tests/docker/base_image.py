"""The image our Dockerfile begins with, made from Debian packages where no registry gives it.

A stand-in with the same name, the same Debian and the same Python, for tests alone. What this
machine needs to reach its package registries (its certificates) goes into it, never into the
Dockerfile.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAME = "python:3.11-slim-bookworm"
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_PULL_SECONDS = 20
_MAKE_SECONDS = 600


def make_base_image(docker: str) -> str | None:
    """Sees that the engine has the image; returns why it has not, or None."""
    if _runs([docker, "image", "inspect", NAME]) or _runs([docker, "pull", NAME], _PULL_SECONDS):
        return None
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        return f"no registry gives {NAME}, and making it takes root and debootstrap"
    with tempfile.TemporaryDirectory(prefix="base-image-") as directory:
        root = Path(directory)
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm"]
        if not _runs([*bootstrap, str(root)], _MAKE_SECONDS):
            return "debootstrap could not make a base image"
        for name in ("python", "python3", "python3.11"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        shutil.rmtree(root / "var/lib/apt/lists")
        shutil.rmtree(root / "var/cache/apt/archives")
        return _import(docker, root)


def _import(docker: str, root: Path) -> str | None:
    command = [docker, "import"]
    certificates = os.environ.get("PIP_CERT")
    if certificates:
        shutil.copy(certificates, root / _CERTIFICATES.lstrip("/"))
        command += ["--change", f"ENV PIP_CERT={_CERTIFICATES}"]
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            [*command, "-", NAME], stdin=tar.stdout, capture_output=True, check=False
        )
    return None if done.returncode == 0 else f"docker import: {done.stderr.decode().strip()}"


def _runs(command: list[str], seconds: float = 20) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
