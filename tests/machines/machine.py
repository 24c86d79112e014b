"""One other machine: a root file system with a checkout in it, and commands run inside.

Each command runs in namespaces of its own (mounts and processes): when it ends or is killed,
whatever it mounted or left running is gone with them.
"""

import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.machines import registries, roots
from tests.processes import REPOSITORY

CHECKOUT = "/home/somebody/checkout"
_OUTPUT_SHOWN = 6000
_ENTER = """
set -e
mount --rbind /dev "$0/dev"
mount -t tmpfs tmpfs "$0/dev/shm"
mount -t proc proc "$0/proc"
mount -t sysfs sysfs "$0/sys"
mkdir -p "$0/root/.cache/pip"
mount --bind "$1" "$0/root/.cache/pip"
root=$0
shift
exec chroot "$root" env -i "$@"
"""


@dataclass(frozen=True)
class Result:
    """How a command ended, and all it printed."""

    command: str
    code: int
    output: str

    def check(self) -> "Result":
        """This result, if the command ended with 0."""
        if self.code != 0:
            raise AssertionError(
                f"{self.command} ended with {self.code}:\n{self.output[-_OUTPUT_SHOWN:]}"
            )
        return self


class Machine:
    """A fresh Debian in `place`; `close` removes it.

    pip's cache is shared with the other machines and kept: it decides on speed alone.
    """

    def __init__(self, suite: str, place: Path) -> None:
        self.root = place
        roots.copy_root(suite, place)
        registries.copy_settings(place)
        self._pip_cache = roots.cache() / "pip"
        self._pip_cache.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Removes the root file system. Nothing of it can still be mounted."""
        shutil.rmtree(self.root)

    def checkout(self) -> None:
        """Puts the files of this checkout that git knows, as they are now, into the machine."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True).stdout
        for name in names.decode().split("\0"):
            source, target = REPOSITORY / name, self.path(CHECKOUT) / name
            if name and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def path(self, inside: str) -> Path:
        """Where a path of the machine lies for us."""
        return self.root / inside.lstrip("/")

    def program(self, inside: str, text: str) -> None:
        """Writes a script that can be run."""
        place = self.path(inside)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)

    def install(self, *packages: str) -> None:
        """Debian's own packages, as `apt-get install` gives them."""
        # A mirror may be weeks behind, and the list of a suite that moves says how long it holds.
        quiet = "DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Check-Valid-Until=false"
        names = " ".join(packages)
        self.run(
            f"{quiet} update -q && {quiet} install -q -y --no-install-recommends {names}",
            seconds=600,
            directory="/",
        ).check()

    def run(
        self,
        command: str,
        *,
        seconds: float,
        directory: str = CHECKOUT,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a line of shell in the machine, with nothing but its own environment, to its end."""
        variables = {
            "HOME": "/root",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            **registries.environment(),
            **(environment or {}),
        }
        inside = [f"{name}={text}" for name, text in variables.items()]
        inside += ["sh", "-c", f"cd {shlex.quote(directory)} && {command}"]
        return self._run(command, inside, seconds)

    def _run(self, command: str, inside: Sequence[str], seconds: float) -> Result:
        # Our death is that of unshare, its death that of the first process in there, and with it of
        # all others: a test that is killed leaves nothing behind either.
        enter = ["setpriv", "--pdeathsig", "KILL"]
        enter += ["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
        enter += ["--kill-child", "sh", "-c", _ENTER, str(self.root), str(self._pip_cache)]
        with subprocess.Popen(
            [*enter, *inside],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={"PATH": os.environ.get("PATH", os.defpath)},
        ) as process:
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            try:
                output = process.stdout.read() if process.stdout else ""
            finally:
                timer.cancel()
                process.kill()
        if process.returncode == -9:
            output += f"\n[killed after {seconds:.0f} s]"
        return Result(command, process.returncode, output)
