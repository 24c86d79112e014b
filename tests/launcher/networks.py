"""Hosts for tests: network namespaces on a switch of their own, each with a real sshd.

They share this machine's files, as hosts with a common file system do.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

_SSHD = """
Port 22
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile {directory}/{name}.pid
PermitRootLogin yes
StrictModes no
UsePAM no
"""
_SSH = """
Host *
    IdentityFile {directory}/user_key
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""


def missing() -> str | None:
    """What this machine lacks for such hosts, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            return f"no {program}: apt-get install {package}"
    if not Path("/usr/sbin/sshd").exists():
        return "no sshd: apt-get install openssh-server"
    probe = f"probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    _ip("netns", "del", probe)
    return None


class Network:
    """A switch with ourselves at `address`, and hosts at the addresses behind it.

    `replaced` lays files over others, on the host of that index only: what differs there.
    """

    def __init__(
        self, directory: Path, hosts: int, replaced: Mapping[int, tuple[Path, Path]] | None = None
    ) -> None:
        self._directory = directory
        self._replaced = replaced or {}
        self._tag = f"{os.getpid() % 10000}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._switch, self._own = f"ls{self._tag}", f"lo{self._tag}"
        self.address = f"{self._subnet}.1"
        self.ssh = f"ssh -F {directory}/ssh_config"
        directory.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host_key", "user_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
            subprocess.run(keygen, check=True)
        (directory / "ssh_config").write_text(_SSH.format(directory=directory))
        # The switch has a namespace too: a Docker engine filters what bridges of ours forward.
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        self._plug(self._own)
        _ip("addr", "add", f"{self.address}/24", "dev", self._own)
        _ip("link", "set", self._own, "up")
        self.hosts = [self._add(index) for index in range(hosts)]

    def cut(self, host: str) -> None:
        """Takes the link of the host down, regardless of its connections."""
        _ip("-n", self._switch, "link", "set", f"{self._link(host)}s", "down")

    def mend(self, host: str) -> None:
        _ip("-n", self._switch, "link", "set", f"{self._link(host)}s", "up")

    def silence(self, host: str) -> None:
        """The host gets everything and answers nothing: no refusal, no unreachable."""
        _ip("netns", "exec", self._name(host), "ip", "route", "add", "blackhole", self.address)

    def processes(self, host: str) -> list[str]:
        """The commands of all processes on the host but its sshd's."""
        pids = _ip("netns", "pids", self._name(host)).split()
        found = []
        for pid in map(int, pids):
            try:
                process = psutil.Process(pid)
                if process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """Kills every process in the namespaces and removes them. Does not raise."""
        for host in self.hosts:
            pids = _ip("netns", "pids", self._name(host)).split()
            for pid in pids:
                subprocess.run(["kill", "-9", pid], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", self._name(host)], check=False)
        subprocess.run(["ip", "link", "del", self._own], check=False)
        subprocess.run(["ip", "netns", "del", self._switch], check=False)

    def _add(self, index: int) -> str:
        host = f"{self._subnet}.{index + 2}"
        name, link = self._name(host), self._link(host)
        _ip("netns", "add", name)
        self._plug(link)
        _ip("link", "set", link, "netns", name)
        for words in (
            ("addr", "add", f"{host}/24", "dev", link),
            ("link", "set", link, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *words)
        config = self._directory / f"{name}.sshd"
        config.write_text(_SSHD.format(address=host, directory=self._directory, name=name))
        start = f"exec /usr/sbin/sshd -f {config}"
        if index in self._replaced:
            other, place = self._replaced[index]
            start = f"mount --bind {other} {place} && {start}"
        _ip("netns", "exec", name, "sh", "-c", start)  # in a separate mount namespace
        limit = time.monotonic() + 10
        while not (self._directory / f"{name}.pid").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        return host

    def _plug(self, link: str) -> None:
        """A cable with one end called `link` here and the other in the switch."""
        plug = f"{link}s"
        _ip("link", "add", link, "type", "veth", "peer", "name", plug, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", plug, "master", "switch", "up")

    def _name(self, host: str) -> str:
        return f"lt{self._tag}-{host.rpartition('.')[2]}"

    def _link(self, host: str) -> str:
        return f"lv{self._tag}.{host.rpartition('.')[2]}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout
