"""A real Slurm cluster on this machine: munged, slurmctld and one slurmd per node, on loopback.

Nodes are named 127.0.0.1, 127.0.0.2, ...: names under which every program finds them. All files and
processes are the cluster's own, and end with it.

python -m tests.slurm.cluster DIRECTORY     starts one, to try commands by hand
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

import psutil

from launcher.agent.tree import die_with

_SBIN = "/usr/sbin"
_PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
_PLUGINS = "/usr/lib/*/slurm-wlm/cred_munge.so"
_START_SECONDS = 30.0
_END_SECONDS = 10.0

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
# A requeued job may start again once its old credential has expired.
AuthInfo=socket={directory}/munge/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/{tracking}
TaskPlugin=task/{tasks}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
SlurmctldTimeout=5
SlurmdTimeout=10
InactiveLimit=0
OverTimeLimit=0
KillWait=20
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=8 RealMemory=16000
NodeName=127.0.0.[1-{nodes}] NodeAddr=127.0.0.1 NodeHostname={host} Port={ports}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 DefMemPerNode=4000
PartitionName=graceful Nodes=ALL MaxTime=60 PriorityTier=1 DefMemPerNode=4000 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 DefMemPerNode=4000
"""


_CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
"""


@cache
def lacks_cgroups() -> str | None:
    """Why Slurm cannot limit memory here: nodes of one machine need cgroups of version 1."""
    memory = Path("/sys/fs/cgroup/memory")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        return "Slurm limits memory here by cgroups of version 1 only, and there are none"
    return None


@cache
def lacks() -> str | None:
    """What this machine lacks for a cluster, or None."""
    missing = [
        package
        for program, package in _PROGRAMS.items()
        if shutil.which(program) is None and not Path(_SBIN, program).exists()
    ]
    if not any(Path("/").glob(_PLUGINS.lstrip("/"))):
        missing.append("slurm-wlm-basic-plugins")
    if missing:
        return f"no Slurm: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "slurmd starts jobs as other users, so only root can start it"
    return None


class Cluster:
    """`nodes` nodes of 8 CPUs while open. `urgent` jobs preempt those of the other partitions."""

    def __init__(self, directory: Path, nodes: int = 2) -> None:
        self.directory = directory
        self.nodes = [f"127.0.0.{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(nodes + 1)
        self._configuration = _CONFIGURATION.format(
            directory=directory,
            port=ports[0],
            ports=f"[{ports[1]}-{ports[nodes]}]",
            nodes=nodes,
            tracking="linuxproc" if lacks_cgroups() else "cgroup",
            tasks="none" if lacks_cgroups() else "cgroup",
            host=socket.gethostname().partition(".")[0],
        )

    @property
    def environment(self) -> dict[str, str]:
        """What makes every command of Slurm use this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def __enter__(self) -> Self:
        munge = self.directory / "munge"
        for name in ("state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "slurm.conf").write_text(self._configuration)
        (self.directory / "cgroup.conf").write_text(_CGROUPS)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        # Everyone may use the socket, so munged insists on directories that everyone may enter.
        for place in (munge, *munge.parents):
            if place.stat().st_uid == os.geteuid() and place != Path("/"):
                place.chmod(place.stat().st_mode | 0o111)
        try:
            files = {"key": "key-file", "log": "log-file", "seed": "seed-file"}
            names = [f"--{flag}={munge / name}" for name, flag in files.items()]
            paths = [f"--socket={munge}/munge.socket", f"--pid-file={munge}/pid"]
            # --force: its own files may stand below directories that others may write to.
            self._start("munged", "--foreground", "--force", *names, *paths)
            self._wait(lambda: (munge / "munge.socket").exists())
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            idle = f"idle {len(self.nodes)}"
            self._wait(lambda: self("sinfo", "--noheader", "--format=%T %D") == idle)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        """The output of a command of Slurm. Raises AssertionError if it fails."""
        done = subprocess.run(
            words,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def start_controller(self) -> None:
        self._start("slurmctld", "-D")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        self._start(f"slurmd {node}", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """As a node that loses power: slurmd, and all that it has started on the node."""
        daemon = self._daemons.pop(f"slurmd {node}")
        steps = [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "slurmstepd" and self._is_of(process, node)
        ]
        below = [one for step in steps for one in (*step.children(recursive=True), step)]
        for process in (psutil.Process(daemon.pid), *below):
            _kill(process)
        daemon.wait(_END_SECONDS)

    def processes(self) -> list[psutil.Process]:
        """All living processes of the cluster: daemons, steps, and the jobs below them."""
        ours = str(self.directory)
        return [
            one for one in psutil.process_iter() if ours in _environment(one).get("SLURM_CONF", "")
        ]

    def close(self) -> None:
        """Ends all processes of the cluster. Does not raise."""
        if "slurmctld" in self._daemons:
            self("scancel", "--user=root", check=False)
        for name in [*self._daemons][::-1]:
            self._end(name)
        for _ in range(20):
            left = [one for one in self.processes() if one.pid != os.getpid()]
            for process in left:
                _kill(process)
            if not left:
                break
            psutil.wait_procs(left, timeout=0.3)
        for node in self.nodes:
            for group in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"):
                below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
                for path in (*below, group):
                    with suppress(OSError):
                        path.rmdir()

    def _is_of(self, step: psutil.Process, node: str) -> bool:
        names = [_environment(one).get("SLURMD_NODENAME") for one in step.children(recursive=True)]
        return node in names or node in " ".join(step.info["cmdline"])

    def _start(self, name: str, *words: str) -> None:
        program = name.partition(" ")[0]
        path, parent = shutil.which(program) or f"{_SBIN}/{program}", os.getpid()
        with (self.directory / f"{name.replace(' ', '-')}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [path, *words],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),  # if the tests themselves are killed
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + _START_SECONDS
        while True:
            try:
                if condition():
                    return
            except AssertionError:
                pass  # the controller does not answer yet
            ended = [name for name, one in self._daemons.items() if one.poll() is not None]
            if ended or time.monotonic() > limit:
                raise RuntimeError(f"no cluster, {ended or 'all'} ended or silent:\n{self._told()}")
            time.sleep(0.1)

    def _told(self) -> str:
        files = [*self.directory.glob("*.out"), *self.directory.glob("*.log")]
        return "\n".join(
            f"{file.name}: {file.read_text(errors='replace')[-600:]}" for file in files
        )


def _free_ports(count: int) -> Sequence[int]:
    """Consecutive ports that nothing listens on."""
    first = 17000 + os.getpid() % 2000
    while True:
        ports = range(first, first + count)
        if all(_is_free(port) for port in ports):
            return ports
        first += count


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Cluster(Path(sys.argv[1]).absolute()) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.pause()
