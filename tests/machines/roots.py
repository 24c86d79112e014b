"""Root file systems of other Debians, made by debootstrap, kept outside the checkout.

The cache may be empty or deleted at any time: a root that is not there is made again.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.machines import registries

# What README asks of a machine, without a compiler, and what cloning and certificates take.
PACKAGES = ("ca-certificates", "git", "make", "python3", "python3-venv")
_SECONDS = 900


def lacks() -> str | None:
    """Why no root file system can be made here, or None."""
    if os.geteuid() != 0:
        return "root file systems of other Debians are made by root"
    for program, package in (
        ("debootstrap", "debootstrap"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"no {program}: apt-get install {package}"
    return None


def cache() -> Path:
    """`$XDG_CACHE_HOME/syncbn-tests`, by default `~/.cache/syncbn-tests`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "syncbn-tests")


def copy_root(suite: str, place: Path) -> None:
    """Puts a fresh root file system of this Debian into the directory `place`."""
    archive = cache() / f"{suite}-{'-'.join(PACKAGES)}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make(suite, archive)
    place.mkdir(parents=True)
    subprocess.run(["tar", "-C", str(place), "-xf", str(archive)], timeout=_SECONDS, check=True)


def _make(suite: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{suite}-", dir=archive.parent) as directory:
        root, packed = Path(directory, "root"), Path(directory, "packed.tar")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite]
        mirror = registries.debian_mirror()
        # In a mount namespace of its own: what debootstrap mounts is gone when it ends, however.
        done = subprocess.run(
            ["unshare", "--mount", *command, str(root), *([mirror] if mirror else [])],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"debootstrap {suite} failed:\n{done.stdout[-3000:]}{done.stderr}")
        subprocess.run(["tar", "-C", str(root), "-cf", str(packed), "."], check=True)
        packed.rename(archive)
