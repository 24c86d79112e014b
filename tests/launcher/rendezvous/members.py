"""The containers of a job as processes of this machine, each running `launcher join`."""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from launcher.spec import merge
from tests.jobs import TOKEN, Job
from tests.launcher.launches import PROGRAM

QUICK = {
    "backend": "horovod",
    "grace": 1.0,
    "silence_timeout": 3.0,
    "restart": {"backoff": 0.2},
}


class Group:
    """The processes of one job: `members[0]` is the first, which leads."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.token = directory, uuid.uuid4().hex
        self.shared = directory / "shared"
        self.shared.mkdir(parents=True)
        self.port = free_port()
        self.members: list[Job] = []

    def join(
        self, *flags: str, program: tuple[str, ...] = (), leads: bool = False, **fields: Any
    ) -> Job:
        """Starts one more member. The first is the leader, and so is its replacement."""
        number = len(self.members)
        directory = self.directory / f"member-{number}"
        place = {"container": {"port": self.port}, "output": str(directory)}
        words = ["join", "--job", json.dumps(merge(merge(QUICK, place), fields)), *flags]
        words += [] if leads or number == 0 else ["--head", "127.0.0.1"]
        command = ["python", str(PROGRAM), "--shared", str(self.shared), *program]
        directory.mkdir()
        with (directory / "launcher").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words, "--", *command],
                cwd=directory,
                env={**os.environ, TOKEN: self.token},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job = Job([process], directory, self.token, 0)
        self.members.append(job)
        return job

    def says(self, member: int, text: str, seconds: float = 30) -> None:
        limit = time.monotonic() + seconds
        while text not in self.log(member):
            assert time.monotonic() < limit, f"{text!r} is not in\n{self.log(member)}"
            time.sleep(0.05)

    def log(self, member: int) -> str:
        return (self.members[member].directory / "launcher").read_text()

    def end(self, member: int, seconds: float = 40) -> int:
        """The exit code of a member. Raises AssertionError if it does not end."""
        try:
            return self.members[member].processes[0].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {seconds} s\n{self.log(member)}") from None

    def steps(self) -> int:
        """The last step that was saved."""
        path = self.shared / "checkpoint.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0

    def programs(self) -> list[psutil.Process]:
        """The ranks that live, whichever member started them."""
        found = []
        for process in self.members[0].alive():
            try:
                if str(PROGRAM) in process.cmdline() and "join" not in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def free_port() -> int:
    """A port whose neighbour above it, for the rendezvous, is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
